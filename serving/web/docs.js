"use strict";

// The service may lie below a prefix, which its description does not know.
const base = new URL(".", location.href).href;

async function show() {
  const spec = await (await fetch(`${base}openapi.json`)).json();
  spec.servers = [{ url: base.replace(/\/$/, "") }];
  SwaggerUIBundle({ spec, dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null });
}

show();
