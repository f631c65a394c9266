/** Asks the service, with the key if there is one. The key is kept in sessionStorage and nowhere else. */

const STORED = "mosa-key";

/** The page without its file: the service may lie below a prefix. */
export const base = new URL(".", location.href);

export const key = () => sessionStorage.getItem(STORED) ?? "";

export function keep(value) {
  if (value) sessionStorage.setItem(STORED, value);
  else sessionStorage.removeItem(STORED);
}

/** What the service answered with an error, in its own words. */
export class ServiceError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Send a request; returns the answer's JSON. */
export async function ask(path, options = {}) {
  const headers = key() ? { ...options.headers, authorization: `Bearer ${key()}` } : options.headers;
  let response;
  try {
    response = await fetch(new URL(path, base), { ...options, headers });
  } catch {
    throw new ServiceError(0, "The service does not answer.");
  }
  const body = await response.json().catch(() => ({}));
  if (response.ok) return body;
  const fault = new ServiceError(response.status, body.detail ?? `The service answers ${response.status}.`);
  if (fault.status === 401) dispatchEvent(new CustomEvent("key-needed", { detail: fault.message }));
  throw fault;
}

export const listTasks = async () => (await ask("v1/tasks")).tasks;
export const classify = async (form) => (await ask("classify", { method: "POST", body: form })).results;
export const listVersions = async (task) => (await ask(`v1/tasks/${task}/versions`)).versions;

export const upload = (task, file, options) =>
  ask(`v1/tasks/${encodeURIComponent(task)}?${new URLSearchParams(options)}`, { method: "PUT", body: file });

export const rollBack = (task, options) =>
  ask(`v1/tasks/${task}/rollback?${new URLSearchParams(options)}`, { method: "POST" });

export const pin = (task, pinned) =>
  ask(`v1/tasks/${task}/pin`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ pinned }),
  });
