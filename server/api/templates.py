"""Messages and prompts to token ids.  Slow for long input, so the endpoints call these in a thread."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError

from server.api.errors import InvalidRequest
from server.api.schemas import ChatBody, Message
from server.api.service import ServedModel

# Arguments of apply_chat_template and variables of the template that are not the client's to set.
RESERVED_KWARGS = frozenset(
    {
        "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "documents",
        "max_length", "messages", "padding", "processor_kwargs", "return_assistant_tokens_mask",
        "return_dict", "return_tensors", "sanitize_control_tokens", "tokenize", "tokenizer_kwargs",
        "tools", "truncation",
    }
)  # fmt: skip

# A template is a program: on messages or variables it was not made for it fails in any of these ways.
TEMPLATE_FAILURES = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)

MAX_REASON_CHARS = 300  # a template may quote the messages


def chat_prompt(body: ChatBody, model: ServedModel) -> list[int]:
    """Token ids of the conversation, ready for the assistant's turn.

    Raises InvalidRequest when the model has no template or its template refuses the messages.
    """
    if not model.tokenizer.has_chat_template:
        raise InvalidRequest(
            f"The model {model.id!r} has no chat template; use /v1/completions.", param="model"
        )
    kwargs = _checked_kwargs(body.chat_template_kwargs or {})
    messages = [_as_template_sees(message) for message in body.messages]
    try:
        return model.tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, **kwargs
        )
    except TEMPLATE_FAILURES as e:
        raise InvalidRequest(
            f"The model's chat template refuses these messages: {str(e)[:MAX_REASON_CHARS]}",
            param="messages",
        ) from e


def text_prompt(text: str, model: ServedModel) -> list[int]:
    """Token ids of a plain prompt, with the tokens the model wants at its beginning."""
    return model.tokenizer.encode(text, add_special_tokens=True)


def _as_template_sees(message: Message) -> dict[str, str]:
    # "developer" is OpenAI's newer word for what templates call "system".
    role = "system" if message.role == "developer" else message.role
    named = {} if message.name is None else {"name": message.name}
    return {"role": role, "content": message.text, **named}


def _checked_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    for name in kwargs:
        if name in RESERVED_KWARGS:
            path = f"chat_template_kwargs.{name}"
            raise InvalidRequest(f"{path} can't be set by a request.", param=path)
    return kwargs
