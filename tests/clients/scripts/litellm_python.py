"""LiteLLM, which calls a server of this kind openai/NAME."""

import sys

import litellm

URL, MODEL = sys.argv[1:]
OPTIONS = {"model": f"openai/{MODEL}", "api_base": URL, "api_key": "none", "timeout": 600}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]

answer = litellm.completion(**OPTIONS, messages=QUESTION, temperature=0)
assert "Paris" in answer.choices[0].message.content
stream = litellm.completion(**OPTIONS, messages=QUESTION, temperature=0, stream=True)
assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in stream)
try:
    litellm.completion(**{**OPTIONS, "model": "openai/gpt-9"}, messages=QUESTION)
except litellm.NotFoundError:
    print("ok")
