"""What the site takes from the project when it is built: settings, routes, and files that lie outside docs/."""

import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

from mosa_deploy.utils.markdown import table
from serving.app import create_app
from serving.settings import SECRET, Settings, variable

ROOT = Path(__file__).resolve().parent.parent

COPIED = ("*.md", "benchmarks/results/**/*", "mosa_deploy/backbones/weights/README.md")
"""Files outside docs/ that are pages and pictures of the site too, below `project/`."""

LEFT_OUT = ("README.md",)
"""The front door of the repository, of which the site is the house."""

LINK = re.compile(r"\]\((?P<target>[\w./-]+)(?P<anchor>#[\w-]+)?\)")
"""A link of Markdown to a file, not to an address."""

METHODS = ("get", "post", "put", "delete")

Json = Mapping[str, Any]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the copied files; they are linked from pages and stand in no menu."""
    for path in copied():
        added = File.generated(config, f"project/{path}", abs_src_path=str(ROOT / path))
        added.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(added)
    return files


def copied() -> list[str]:
    """The copied files, relative to the repository."""
    found = {path for pattern in COPIED for path in ROOT.glob(pattern) if path.is_file()}
    return sorted({path.relative_to(ROOT).as_posix() for path in found} - {*LEFT_OUT})


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what is generated, and lead links out of docs/ to the copied files."""
    for name, make in GENERATED.items():
        before, found, after = markdown.partition(f"<!-- {name} -->")
        if found:
            markdown = before + make() + after.partition(f"<!-- /{name} -->")[2]
    return LINK.sub(lambda link: in_site(link, page.file.src_uri), markdown)


def in_site(link: re.Match[str], source: str) -> str:
    """A link of a page as it is in the site: `../X` in docs/ becomes `project/X`, and `docs/X` in a copied file `X`."""
    folder = posixpath.dirname(source)
    inside = source.startswith("project/")
    in_repository = folder.removeprefix("project").lstrip("/") if inside else posixpath.join("docs", folder)
    target = posixpath.normpath(posixpath.join(in_repository, link["target"]))
    if target in LEFT_OUT:
        target = "docs/index.md"
    there = target.removeprefix("docs/") if target.startswith("docs/") else f"project/{target}"
    return f"]({posixpath.relpath(there, folder or '.')}{link['anchor'] or ''})"


def settings_table() -> str:
    """Every variable of the service: its default, the values it takes, and what it means."""
    schema = Settings.model_json_schema()["properties"]
    rows = []
    for name, field in Settings.model_fields.items():
        meaning = field.description or ""
        if name in SECRET:
            meaning += f" Also a file, with one key per line: `{variable(name)}_FILE`."
        rows.append((f"`{variable(name)}`", default(schema[name]), values(schema[name]), meaning))
    return table(("variable", "default", "takes", "meaning"), rows)


def default(field: Json) -> str:
    """What a variable is if it is not set."""
    value = field["default"]
    if value in ([], ""):
        return "none"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def values(field: Json) -> str:
    """The values that a variable takes, in words."""
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    words = {"integer": "whole number", "number": "number", "array": "list, with commas", "string": "text"}
    least = f", at least {field['minimum']:g}" if "minimum" in field else ""
    above = f", above {field['exclusiveMinimum']:g}" if "exclusiveMinimum" in field else ""
    return words[field["type"]] + least + above


def routes() -> str:
    """The OpenAPI description: its routes, then their statuses, then the objects they answer with."""
    described = create_app(Settings()).openapi()
    operations = {
        f"{method.upper()} {path}": item[method]
        for path, item in described["paths"].items()
        for method in METHODS
        if method in item
    }
    schemas = described["components"]["schemas"]
    sections = [route(name, operation) for name, operation in operations.items()]
    objects = [model(name, schema) for name, schema in schemas.items() if not name.startswith("Body_")]
    return "\n\n".join([*sections, "## Statuses", statuses(operations), "## Objects", *objects])


def route(name: str, operation: Json) -> str:
    """One route: what it does, what it takes, and what it answers."""
    responses = operation["responses"]
    good = next(status for status in responses if status.startswith("2"))
    answer = responses[good].get("content", {}).get("application/json", {}).get("schema")
    key = "an admin key" if "403" in responses else "an API key, if the service has any"
    taken = [*parameters(operation), *body(operation)]
    faults = ", ".join(f"[{status}](#statuses)" for status in sorted(responses) if status != good)
    facts = [
        f"- **Needs** {key}.",
        f"- **Answers** {good}: {type_in_words(answer)}." if answer else f"- **Answers** {good}, without a body.",
        f"- **Refuses** with {faults}.",
    ]
    tables = [table(("name", "in", "type", "meaning"), taken)] if taken else []
    return "\n\n".join([f"## `{name}`", operation["description"], *tables, "\n".join(facts)])


def parameters(operation: Json) -> Iterator[tuple[str, ...]]:
    """The parameters in the path and the query."""
    for each in operation.get("parameters", ()):
        schema = each["schema"]
        meaning = each.get("description", schema.get("description", ""))
        yield f"`{each['name']}`", each["in"], type_in_words(schema), meaning


def body(operation: Json) -> Iterator[tuple[str, ...]]:
    """The fields of a form or of JSON, or the body as a whole."""
    request = operation.get("requestBody", {})
    for content, each in request.get("content", {}).items():
        schema = each["schema"]
        if "properties" not in schema:
            yield "the body", f"`{content}`", type_in_words(schema), request.get("description", "")
            continue
        place = "form" if content == "multipart/form-data" else "JSON"
        for name, field in schema["properties"].items():
            needed = " Required." if name in schema.get("required", ()) else ""
            yield f"`{name}`", place, type_in_words(field), field.get("description", "") + needed


def statuses(operations: Mapping[str, Json]) -> str:
    """Every status of a refusal, with its meaning and the routes that have it."""
    meaning, having = dict[str, str](), dict[str, list[str]]()
    for name, operation in operations.items():
        for status, response in operation["responses"].items():
            if not status.startswith("2"):
                meaning[status] = response["description"]
                having.setdefault(status, []).append(f"`{name}`")
    rows = [
        (status, meaning[status], "all" if len(having[status]) == len(operations) else ", ".join(having[status]))
        for status in sorted(meaning)
    ]
    return table(("status", "meaning", "routes"), rows)


def model(name: str, schema: Json) -> str:
    """One JSON object and its fields."""
    fields = schema["properties"].items()
    rows = [(f"`{field}`", type_in_words(each), each.get("description", "")) for field, each in fields]
    return f"### {name}\n\n{schema.get('description', '')}\n\n{table(('field', 'type', 'meaning'), rows)}"


def type_in_words(schema: Json) -> str:
    """A type of JSON; an object is a link to its fields."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(map(type_in_words, schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {type_in_words(schema['items'])}"
    if "contentMediaType" in schema or schema.get("format") == "binary":
        return "file"
    return str(schema.get("type", "anything"))


GENERATED = {"settings": settings_table, "routes": routes}
