"""A server of the OpenAI API over transformers' own model code: completions, streams, echoes and token ids.

    python openai_server.py serve MODEL --served-model-name NAME --host HOST --port PORT

`--text-only` leaves out what not every server has: token ids, log-probabilities, numbers of tokens. `--canned` answers
each prompt with "a", without a model; `--dies-at` is the request at which the process ends.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

parser = argparse.ArgumentParser()
parser.add_argument("verb")
parser.add_argument("model")
parser.add_argument("--served-model-name", default="tiny")
parser.add_argument("--host", required=True)
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--text-only", action="store_true")
parser.add_argument("--dies-at", type=int, default=0)
parser.add_argument("--canned", action="store_true")
parser.add_argument("--enable-lora", action="store_true")
parser.add_argument("--max-lora-rank", type=int, choices=(8, 16, 32, 64, 128, 256, 320, 512))
parser.add_argument("--lora-modules", help="NAME=FOLDER: requests name the adapted model so")
args = parser.parse_args()
if not args.canned:
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    if args.enable_lora:
        from peft import PeftModel

        args.served_model_name, _, adapter = args.lora_modules.partition("=")
        model = PeftModel.from_pretrained(model, adapter).eval()
    tokenizer = Tokenizer.from_file(f"{args.model}/tokenizer.json")
requests = 0
# A process in a session of its own, as servers with several workers have.
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Write no line for a request."""

    def do_GET(self) -> None:
        self.answer(200, {"data": [{"id": args.served_model_name}]})

    def do_POST(self) -> None:
        global requests
        requests += 1
        if requests == args.dies_at:
            print("ValueError: no more memory for caches", file=sys.stderr, flush=True)
            os._exit(3)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["model"] != args.served_model_name:
            self.answer(404, {"error": {"message": f"no model {body['model']}"}})
        elif args.canned:
            self.answer(200, {"choices": [{"text": "a"}]})
        elif body.get("stream"):
            self.stream(body)
        elif body.get("echo") and args.text_only:
            self.answer(400, {"error": {"message": "echo is not supported"}})
        else:
            self.answer(200, completion(body))

    def stream(self, body: dict[str, Any]) -> None:
        ids, made = generated(body)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for place in range(len(made)):
            before, after = (tokenizer.decode(ids + made[: place + more]) for more in (0, 1))
            self.event({"choices": [{"text": after[len(before) :]}]})
        if not args.text_only:
            self.event({"choices": [], "usage": {"completion_tokens": len(made)}})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, data: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())

    def answer(self, status: int, data: dict[str, Any]) -> None:
        text = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def completion(body: dict[str, Any]) -> dict[str, Any]:
    ids, made = generated(body)
    choice: dict[str, Any] = {"text": tokenizer.decode(ids + made)[len(tokenizer.decode(ids)) :]}
    if args.text_only:
        return {"choices": [choice]}
    if body.get("return_token_ids"):
        choice["token_ids"] = made
    if body.get("echo"):
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        choice["logprobs"] = {"token_logprobs": [None, *(float(scores[i, t]) for i, t in enumerate(ids[1:]))]}
    return {"choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": len(made)}}


def generated(body: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Return the tokens of the prompt and greedy ones, up to one that ends the text unless that is to be ignored."""
    prompt = body["prompt"]
    ids = tokenizer.encode(prompt).ids if isinstance(prompt, str) else prompt
    made: list[int] = []
    while len(made) < body["max_tokens"] and (body.get("ignore_eos") or 2 not in made):
        with torch.no_grad():
            made.append(int(model(torch.tensor([ids + made])).logits[0, -1].argmax()))
    return ids, made


server = ThreadingHTTPServer((args.host, args.port), Handler)
server.serve_forever()
