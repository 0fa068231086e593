#!/usr/bin/env bash
# `strict: true` on a tool makes DeepSeek's renderer show the model less of the tool's schema, and of
# "$defs" nothing: only definitions under the misspelt "$def" survive.
#
# Package: PyPI deepseek-recipe 0.2.0.
#
# Behaviour: one tool is rendered twice for V4, without `strict` and with `strict: true`. Without, its
# schema stands in the prompt as it was sent. With it, minItems, maxItems, minLength, title, default
# and the enum of an integer are gone; minimum, pattern and the enum of a string stay. References stay
# too, but what they point to does not: "$defs", JSON Schema's word (and the one that pydantic
# writes), and "definitions", its older one, are left out, so that "$ref": "#/$defs/Place" leads
# nowhere. "$def", which no version of JSON Schema knows, is kept. No error is raised.
#
# Why a good guess is wrong: strict is a promise about the answer ("arguments fit the schema"), so one
# expects the same prompt and a mask on the sampler, or a refusal of what strict mode cannot hold (a
# schema whose "required" lacks a property is refused). Instead the model sees a schema that allows
# more than the caller's, with types that it must guess, and arguments that fit what it saw fail the
# caller's check. Bounds that matter belong into descriptions as well, and definitions inline.
#
# Seen:
#   keyword                strict: false   strict: true
#   minItems               shown           left out
#   maxItems               shown           left out
#   minLength              shown           left out
#   title                  shown           left out
#   default                shown           left out
#   enum of an integer     shown           left out
#   enum of a string       shown           shown
#   minimum                shown           shown
#   pattern                shown           shown
#   $ref                   shown           shown
#   $defs                  shown           left out
#   definitions            shown           left out
#   $def                   shown           shown
#   "required" lacks a property: taken without strict, refused with it
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet deepseek-recipe==0.2.0

cat >strict.py <<'PY'
import json

from deepseek_recipe import ChatCompletionRequest, ConversionError, ConversionOptions, DeepseekV4Encoding

def schema(definitions):
    return {
        "type": "object",
        "properties": {
            "place": {"$ref": f"#/{definitions}/Place"},
            "levels": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3, "title": "Levels"},
            "size": {"type": "integer", "enum": [1, 2], "minimum": 1},
            "code": {"type": "string", "enum": ["aa", "aaa"], "minLength": 2, "pattern": "^a+$", "default": "aa"},
        },
        "required": ["place", "levels", "size", "code"],
        "additionalProperties": False,
        definitions: {
            "Place": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"],
                      "additionalProperties": False},
        },
    }


def shown(strict, schema):
    """The tool's schema, as it stands in the prompt."""
    request = ChatCompletionRequest({
        "model": "DeepSeek-V4-Pro",
        "messages": [{"role": "user", "content": "go"}],
        "tools": [{"type": "function", "function": {
            "name": "move", "description": "moves", "strict": strict, "parameters": schema}}],
    })
    prompt = DeepseekV4Encoding().render_conversation(request.convert(ConversionOptions()).conversation).prompt
    line = next(line for line in prompt.splitlines() if line.startswith('{"name": "move"'))
    return json.loads(line)["parameters"]


def keywords(node):
    """All that a schema says, enums with the type that they belong to."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"enum of a {node['type']}".replace("a integer", "an integer") if key == "enum" else key
            yield from keywords(value)


sent = schema("$defs")
loose, strict = shown(False, sent), shown(True, sent)
assert loose == sent
dropped = {"minItems", "maxItems", "minLength", "title", "default", "enum of an integer", "$defs", "definitions"}
print("keyword                strict: false   strict: true")


def row(key, loose, strict):
    seen = [key in set(keywords(schema)) for schema in (loose, strict)]
    print(f"{key:22} {'shown' if seen[0] else 'left out':15} {'shown' if seen[1] else 'left out'}")
    assert seen == [True, key not in dropped]


for key in ("minItems", "maxItems", "minLength", "title", "default", "enum of an integer", "enum of a string",
            "minimum", "pattern", "$ref", "$defs"):
    row(key, loose, strict)
for key in ("definitions", "$def"):
    row(key, shown(False, schema(key)), shown(True, schema(key)))

lacking = {**sent, "required": ["place"]}
assert shown(False, lacking) == lacking
try:
    shown(True, lacking)
    raise SystemExit("a strict schema that does not require everything was taken")
except ConversionError:
    print('"required" lacks a property: taken without strict, refused with it')
PY
venv/bin/python strict.py
