"""Checks the OpenAPI documents and the clients that `scripts/test-clients` generates from them."""

import ast
import json
import re
import sys
import urllib.request
from pathlib import Path

METHODS = ("get", "put", "post", "patch", "delete")
# By generator: the directory of the classes, and the spelling of a method.
CLASSES = {
    "java": ("**/src/main/java/**/{group}Api.java", r"\bpublic \S+ {method}\("),
    "kotlin": ("**/src/main/kotlin/**/{group}Api.kt", r"\bfun {method}\("),
    "python": ("**/api/{snake}_api.py", r"\bdef {snake_method}\("),
}


def snake(name):
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def operations(document):
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, method, item[method]


def documents(base, directory):
    """Fetches and validates both documents."""
    from openapi_spec_validator import OpenAPIV31SpecValidator

    for name, path in (("page", "/v3/api-docs"), ("clients", "/v3/api-docs/clients")):
        text = urllib.request.urlopen(base + path, timeout=60).read()
        faults = [f"{list(fault.absolute_path)}: {fault.message[:300]}" for fault in OpenAPIV31SpecValidator(json.loads(text)).iter_errors()]
        if faults:
            raise SystemExit("\n".join([f"{path} is not valid:", *faults]))
        Path(directory, f"{name}.json").write_bytes(text)
    broken = json.loads(text)
    broken["components"]["schemas"]["ReleaseAllRequest"]["properties"] = None
    if OpenAPIV31SpecValidator(broken).is_valid():
        raise SystemExit("the validator finds nothing wrong with a schema without properties: it checks nothing")


def client(document, language, made):
    """Checks that each operation is a method of the class of its group, and that there are no other classes."""
    document = json.loads(Path(document).read_text())
    place, method = CLASSES[language]
    groups = {}
    for _, _, operation in operations(document):
        (group,) = operation["x-tags"]
        groups.setdefault(group, []).append(operation["operationId"])
    for group, names in groups.items():
        files = list(Path(made).glob(place.format(group=group, snake=snake(group))))
        if len(files) != 1:
            raise SystemExit(f"{language}: no class of the group {group}: {files}")
        source = files[0].read_text()
        if language == "python":
            ast.parse(source)
        for name in names:
            if not re.search(method.format(method=name, snake_method=snake(name)), source):
                raise SystemExit(f"{language}: {files[0].name} has no {name}")
    ungrouped = [file.name for file in Path(made).rglob("*") if re.fullmatch(r"default_?api\.(java|kt|py)", file.name, re.IGNORECASE)]
    if ungrouped:
        raise SystemExit(f"{language}: operations without a group: {ungrouped}")
    print(f"{language}: {sum(map(len, groups.values()))} operations in {len(groups)} classes")


# The commands of a page that install, with the versions that they name. The test has the same ones pinned.
INSTALLS = re.compile(r"(npm install|pip install|mvn dependency:copy) ")
VERSIONS = re.compile(r"([\w@/.-]+)(?:@|==|:)(\d[\w.]*)")


def page(page, directory, base, *pins):
    """Writes the files that a page shows, and its commands as `steps`, with the address of the service. `pins` are files with versions."""
    text = Path(page).read_text()
    pinned = "\n".join(Path(file).read_text() for file in pins)
    steps, files = ["set -euo pipefail"], 0
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if language != "shell":
            name = re.match(r"(?:#|//) ([\w./]+)\n", block)
            if not name:
                raise SystemExit(f"{page}: a block without the name of its file: {block[:80]}")
            file = Path(directory, name[1])
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block)
            files += 1
            continue
        for command in re.sub(r"\\\n\s*", "", block).splitlines():
            if not INSTALLS.match(command):
                steps.append(command.replace("http://localhost:8080", base))
                continue
            for name, version in VERSIONS.findall(command):
                name = name.rsplit(":", 1)[-1].rsplit("=", 1)[-1]
                known = [f'"{name}": "{version}"', f"{name}=={version} ", f"{name}-{version}.jar"]
                if not any(line in pinned for line in known):
                    raise SystemExit(f"{page}: `make test-clients` tries another version than {name} {version}")
    if files < 2 or len(steps) < 3:
        raise SystemExit(f"{page}: {files} files, {len(steps)} commands")
    Path(directory, "steps").write_text("\n".join(steps) + "\n")


if __name__ == "__main__":
    {"documents": documents, "client": client, "page": page}[sys.argv[1]](*sys.argv[2:])
