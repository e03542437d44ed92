"""Messages and prompts to token ids.  Slow for long input, so the endpoints call these in a thread."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError

from pipeline.errors import ContextTooLong
from server.api.errors import InvalidRequest
from server.api.reasoning import reasons
from server.api.schemas import ChatBody
from server.api.service import ServedModel
from server.api.tools.families import has_tools
from server.api.tools.prompt import conversation
from server.api.tools.use import tool_use
from server.templating.bound import renders_text

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


def chat_prompt(body: ChatBody, model: ServedModel, *, fitting: bool = False) -> list[int]:
    """Token ids of the conversation, with the tools that may be called, ready for the assistant's turn.

    Raises InvalidRequest when the model has no template or its template refuses the messages; `fitting`: also,
    before there are tokens, when these are too many for the model.
    """
    if not model.tokenizer.has_chat_template:
        raise InvalidRequest(
            f"The model {model.id!r} has no chat template; use /v1/completions.", param="model"
        )
    asked = _checked_kwargs(body.chat_template_kwargs or {})
    kwargs = {**_effort(body, model), **asked}
    use, known = tool_use(body, model.tokenizer), has_tools(model.tokenizer)
    tools = use.tools if use else ()
    messages = conversation(body.messages, tools, known)
    if tools and known:
        kwargs["tools"] = [tool.as_template_sees() for tool in tools]
    separately = renders_text(model.tokenizer)
    try:
        rendered = model.tokenizer.apply_chat_template(
            messages, tokenize=not separately, add_generation_prompt=True, **kwargs
        )
    except TEMPLATE_FAILURES as e:
        raise InvalidRequest(
            f"The model's chat template refuses these messages: {str(e)[:MAX_REASON_CHARS]}",
            param="messages",
        ) from e
    if isinstance(rendered, list):
        return rendered
    if fitting:
        check_length(rendered, model, "messages")
    return model.tokenizer.encode(rendered, add_special_tokens=False)


def check_length(text: str, model: ServedModel, param: str) -> None:
    """Raises InvalidRequest for a text that has more tokens than the model takes, however it is cut."""
    if len(text) <= model.max_model_len:
        return  # maybe it does as well, but then it is short
    least = model.token_bound.least(text)
    if least >= model.max_model_len:
        message = str(ContextTooLong(least + 1, model.max_model_len, least=True))
        raise InvalidRequest(message, param=param, code="context_length_exceeded")


def text_prompt(text: str, model: ServedModel) -> list[int]:
    """Token ids of a plain prompt, with the tokens the model wants at its beginning.

    Raises InvalidRequest for one that is too long.
    """
    check_length(text, model, "prompt")
    return model.tokenizer.encode(text, add_special_tokens=True)


def _effort(body: ChatBody, model: ServedModel) -> dict[str, Any]:
    """reasoning_effort in the words of chat templates.  A model that can't think makes none, and no more."""
    effort = body.reasoning_effort
    if effort is None:
        return {}
    template = str(getattr(model.tokenizer, "chat_template", ""))
    if reasons(model.tokenizer) or "reasoning_effort" in template:
        return {"reasoning_effort": effort, "enable_thinking": effort != "none"}
    if effort in ("none", "minimal"):
        return {}
    message = f"reasoning_effort: the model {model.id!r} does not reason."
    raise InvalidRequest(message, param="reasoning_effort", code="unsupported_parameter")


def _checked_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    for name in kwargs:
        if name in RESERVED_KWARGS:
            path = f"chat_template_kwargs.{name}"
            raise InvalidRequest(f"{path} can't be set by a request.", param=path)
    return kwargs
