#!/usr/bin/env bash
# iter_lines of httpx and httpx2 cuts a server-sent event in two at U+2028, U+2029 or U+0085 inside
# its JSON; so does requests with decode_unicode.
#
# Packages: PyPI httpx 0.28.1, httpx2 2.16.2, requests 2.34.2, httpx-sse 0.4.3, openai 3.57.0.
#
# Behaviour: the stream has one event whose JSON contains, unescaped, a character that Unicode calls a
# line separator. JSON allows that, and most writers leave it so; the event stream format knows CR and
# LF as line ends only. httpx's and httpx2's `Response.iter_lines` and requests'
# `iter_lines(decode_unicode=True)` decode first and split by Python's rules for text: the event
# arrives as two lines, the first with half of a JSON document. requests' iter_lines on bytes,
# httpx-sse and the openai client read it whole.
#
# Why a good guess is wrong: iter_lines looks like the reader for the lines of a protocol, works for
# months, and is what a client of an OpenAI-like server loops over when it is written by hand ("if the
# line starts with data:"). A model that emits one U+2028, copied from some web page, ends the answer
# with a JSON error. Test servers written in Python hide it, for their json escapes everything beyond
# ASCII by default. A server that wants to be read by such loops escapes the three characters.
#
# Seen:
#                                   U+2028   U+2029   U+0085   escaped
#   httpx.iter_lines                broken   broken   broken   whole
#   httpx2.iter_lines               broken   broken   broken   whole
#   requests, decode_unicode=True   broken   broken   broken   whole
#   requests, bytes                 whole    whole    whole    whole
#   httpx-sse                       whole    whole    whole    whole
#   openai                          whole    whole    whole    whole
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet httpx==0.28.1 httpx2==2.16.2 requests==2.34.2 httpx-sse==0.4.3 openai==3.57.0

cat >lines.py <<'PY'
import http.server
import json
import sys
import threading

import httpx
import httpx2
import httpx_sse
import openai
import requests

stream = b""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.end_headers()
        self.wfile.write(stream)

    do_POST = do_GET

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"


def text_of(data):
    return json.loads(data)["choices"][0]["delta"]["content"]


def from_lines(lines):
    """The loop that one writes by hand."""
    text = ""
    for line in lines:
        line = line.decode() if isinstance(line, bytes) else line
        if line.startswith("data: ") and line != "data: [DONE]":
            text += text_of(line[6:])
    return text


def with_httpx(library):
    with library.stream("GET", url) as response:
        return from_lines(response.iter_lines())


def with_requests(unicode):
    return from_lines(requests.get(url, stream=True).iter_lines(decode_unicode=unicode))


def with_httpx_sse():
    with httpx.Client() as client, httpx_sse.connect_sse(client, "GET", url) as source:
        return "".join(text_of(event.data) for event in source.iter_sse() if event.data != "[DONE]")


def with_openai():
    client = openai.OpenAI(base_url=url, api_key="none")
    chunks = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "?"}], stream=True)
    return "".join(chunk.choices[0].delta.content for chunk in chunks)


readers = {
    "httpx.iter_lines": (lambda: with_httpx(httpx), False),
    "httpx2.iter_lines": (lambda: with_httpx(httpx2), False),
    "requests, decode_unicode=True": (lambda: with_requests(True), False),
    "requests, bytes": (lambda: with_requests(False), True),
    "httpx-sse": (with_httpx_sse, True),
    "openai": (with_openai, True),
}
ok = True
print(f"{'':31} U+2028   U+2029   U+0085   escaped")
for name, (read, should_be_whole) in readers.items():
    row = []
    for separator, escaped in (("\u2028", False), ("\u2029", False), ("\u0085", False), ("\u2028", True)):
        content = f"before{separator}after"
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m",
                 "choices": [{"index": 0, "delta": {"content": content}, "finish_reason": None}]}
        stream = f"data: {json.dumps(chunk, ensure_ascii=escaped)}\n\ndata: [DONE]\n\n".encode()
        try:
            whole = read() == content
        except json.JSONDecodeError:
            whole = False
        row.append("whole" if whole else "broken")
        ok &= whole == (should_be_whole or escaped)
    print(f"{name:31} {row[0]:8} {row[1]:8} {row[2]:8} {row[3]}")
sys.exit(not ok)
PY
venv/bin/python lines.py
