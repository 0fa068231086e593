#!/usr/bin/env bash
# DeepSeek's own renderer puts the parallel tool calls of an assistant message, and their results,
# into the alphabetical order of their ids for V4: call_10 comes before call_2.
#
# Package: PyPI deepseek-recipe 0.2.0.
#
# Behaviour: a conversation holds an assistant message with twelve calls, ids call_0 to call_11, and
# their twelve results, in that order. The V4 encoding's prompt has both in the order 0, 1, 10, 11, 2
# and so on. With ids as clients and servers draw them, at random, the order is a random one. The V4.1
# encoding renders the calls in the order of the message, and sorts the results after the calls.
#
# Why a good guess is wrong: ids exist to find a call's result, not to be ordered by, and a list in JSON
# has an order; a renderer that keeps it looks right, and agrees with the reference in each test that
# has fewer than eleven numbered calls. With random ids it differs at two. It also reaches the prefix
# cache: the model wrote the calls in one order, and the next turn's prompt has them in another, so
# that what was kept of the answer does not match.
#
# Seen:
#   V4    calls    0 1 10 11 2 3 4 5 6 7 8 9
#   V4    results  0 1 10 11 2 3 4 5 6 7 8 9
#   V4.1  calls    0 1 2 3 4 5 6 7 8 9 10 11
#   V4.1  results  0 1 2 3 4 5 6 7 8 9 10 11
#   V4, random ids: calls in the order of the message: no, sorted by id: yes
#   V4.1, results sent backwards: 0 1 2 3 4 5 6 7 8 9 10 11
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet deepseek-recipe==0.2.0

cat >order.py <<'PY'
import hashlib
import json
import re

from deepseek_recipe import ChatCompletionRequest, ConversionOptions, DeepseekV41Encoding, DeepseekV4Encoding


def render(encoding, ids, backwards=False):
    """The order of calls and of results in the prompt, by their place in the message."""
    calls = [{"id": id, "type": "function", "function": {"name": "look", "arguments": json.dumps({"at": n})}}
             for n, id in enumerate(ids)]
    results = [{"role": "tool", "tool_call_id": id, "content": f"result-{n}"} for n, id in enumerate(ids)]
    request = ChatCompletionRequest({
        "model": "DeepSeek-V4-Pro",
        "messages": [{"role": "user", "content": "go"}, {"role": "assistant", "content": "", "tool_calls": calls},
                     *(results[::-1] if backwards else results)],
        "tools": [{"type": "function", "function": {"name": "look", "description": "looks", "parameters": {
            "type": "object", "properties": {"at": {"type": "integer"}}, "required": ["at"]}}}],
    })
    prompt = encoding().render_conversation(request.convert(ConversionOptions()).conversation).prompt
    return ([int(n) for n in re.findall(r'name="at"[^>]*>(\d+)<', prompt)],
            [int(n) for n in re.findall(r"result-(\d+)", prompt)])


numbered = [f"call_{n}" for n in range(12)]
as_sent = list(range(12))
as_text = sorted(as_sent, key=str)
for name, encoding, expected in (("V4", DeepseekV4Encoding, as_text), ("V4.1", DeepseekV41Encoding, as_sent)):
    for kind, order in zip(("calls", "results"), render(encoding, numbered)):
        print(f"{name:5} {kind:8}", *order)
        assert order == expected

random = ["call_" + hashlib.sha256(bytes([n])).hexdigest()[:16] for n in as_sent]
calls, _ = render(DeepseekV4Encoding, random)
by_id = sorted(as_sent, key=lambda n: random[n])
yes = {True: "yes", False: "no"}
print(f"V4, random ids: calls in the order of the message: {yes[calls == as_sent]}, sorted by id: {yes[calls == by_id]}")
assert calls == by_id != as_sent

_, results = render(DeepseekV41Encoding, numbered, backwards=True)
print("V4.1, results sent backwards:", *results)
assert results == as_sent
PY
venv/bin/python order.py
