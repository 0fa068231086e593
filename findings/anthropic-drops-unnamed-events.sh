#!/usr/bin/env bash
# The Anthropic clients drop every event of a stream that lacks an `event:` line: the answer is empty,
# and create(stream=True) reports no error.
#
# Packages: PyPI anthropic 2.14.0, npm @anthropic-ai/sdk 1.14.0; for comparison PyPI openai 3.57.0.
#
# Behaviour: a server sends the six events of a Messages answer, each as one `data:` line whose JSON
# has its `type`, first with the `event:` lines that repeat that type, then without them. With them
# both clients give six events. Without them both loops end at once, in silence, with none at all:
# status 200, no exception, no text. The openai client shows the opposite habit: it reads the same
# chunks with and without names.
#
# Why a good guess is wrong: the name says nothing that the data does not say (its `type` is the same
# word), the event stream format makes it optional, and OpenAI's API has no names. A server, proxy or
# test double that keeps only the data lines therefore looks right in curl and in every generic reader,
# and its clients see a model that answers nothing.
#
# Seen:
#   anthropic (Python)         named: 6 events, no error   unnamed: 0 events, no error
#   @anthropic-ai/sdk (Node)   named: 6 events, no error   unnamed: 0 events, no error
#   openai (Python)            named: 2 events, no error   unnamed: 2 events, no error
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet anthropic==2.14.0 openai==3.57.0
npm install --silent --no-fund --no-audit @anthropic-ai/sdk@1.14.0

cat >node.mjs <<'JS'
import Anthropic from "@anthropic-ai/sdk";
const client = new Anthropic({ baseURL: process.argv[2], apiKey: "none" });
let events = 0, error = "no error";
try {
  const stream = await client.messages.create({
    model: "m", max_tokens: 8, stream: true, messages: [{ role: "user", content: "?" }],
  });
  for await (const _ of stream) events++;
} catch (e) {
  error = e.constructor.name;
}
console.log(`${events} events, ${error}`);
JS
cat >events.py <<'PY'
import http.server
import json
import subprocess
import sys
import threading

import anthropic
import openai

message = {"id": "1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None,
           "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}}
anthropic_events = [
    {"type": "message_start", "message": message},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 1}},
    {"type": "message_stop"},
]
openai_events = [
    {"type": "chunk", "id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m",
     "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]} for text in ("hel", "lo")
]
named = True


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.end_headers()
        for event in anthropic_events if self.path.endswith("/messages") else openai_events:
            name = f"event: {event['type']}\n" if named else ""
            self.wfile.write(f"{name}data: {json.dumps(event)}\n\n".encode())

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
question = [{"role": "user", "content": "?"}]


def count(start):
    events, error = 0, "no error"
    try:
        for _ in start():
            events += 1
    except Exception as e:
        error = type(e).__name__
    return f"{events} events, {error}"


clients = {
    "anthropic (Python)": lambda: count(lambda: anthropic.Anthropic(base_url=url, api_key="none").messages.create(
        model="m", max_tokens=8, messages=question, stream=True)),
    "@anthropic-ai/sdk (Node)": lambda: subprocess.check_output(["node", "node.mjs", url], text=True).strip(),
    "openai (Python)": lambda: count(lambda: openai.OpenAI(base_url=url, api_key="none").chat.completions.create(
        model="m", messages=question, stream=True)),
}
ok = True
for name, ask in clients.items():
    named = True
    with_names = ask()
    named = False
    without = ask()
    print(f"{name:26} named: {with_names}   unnamed: {without}")
    expected = ("2", "2") if name.startswith("openai") else ("6", "0")
    ok &= (with_names, without) == tuple(f"{n} events, no error" for n in expected)
sys.exit(not ok)
PY
venv/bin/python events.py
