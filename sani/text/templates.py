"""Chat templates rendered under a time limit, in a process of their own.

A template is a program that came with the model. It may loop for hours, or ask for a power with a
billion digits. A thread cannot be ended, and an alarm in this process would wait for the running C
function. A process can be ended at any moment, so templates are rendered in one: see
`sani.text.template_process`. It imports no torch, starts once and answers many requests.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sani.errors import CheckpointError

SECONDS = 10.0  # for a request, beside those for each conversation; ours
SECONDS_EACH = 0.1  # a usual template takes about a millisecond
_BATCH = 1000  # conversations in a request
_PROGRAM = Path(__file__).with_name("template_process.py")
_processes: dict[int, subprocess.Popen[str]] = {}  # by the number of the process that started it

Message = Mapping[str, str]


class TemplateRefusedError(CheckpointError):
    """A template that raised an error on a conversation.

    Attributes:
        error: The error's type; its text may quote what the template got.
    """

    def __init__(self, error: str) -> None:
        super().__init__(f"the model's chat template refuses a conversation ({error})")
        self.error = error


def render_chats(
    tokenizer: Any, conversations: Sequence[Sequence[Message]], *, generation: bool = False
) -> list[str | TemplateRefusedError]:
    """Return what the tokenizer's chat template makes of each conversation.

    The texts are those of ``tokenizer.apply_chat_template(..., tokenize=False)``.

    Args:
        tokenizer: A tokenizer with a chat template.
        conversations: Messages with ``role`` and ``content``.
        generation: Whether the text ends with the opening of the assistant's turn.

    Returns:
        One text a conversation; where the template raised an error, that refusal in its place.

    Raises:
        CheckpointError: If the template does not come to an end in time.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        return [TemplateRefusedError(type(error).__name__) for _ in conversations]
    answers: list[str | TemplateRefusedError] = []
    for start in range(0, len(conversations), _BATCH):
        batch = conversations[start : start + _BATCH]
        request = {
            "template": template,
            "special_tokens": tokenizer.special_tokens_map,
            "conversations": [list(map(dict, messages)) for messages in batch],
            "generation": generation,
            "seconds": SECONDS + SECONDS_EACH * len(batch),
        }
        answers += [
            answer["text"] if "text" in answer else TemplateRefusedError(answer["refused"])
            for answer in _ask(request)
        ]
    return answers


def render_chat(tokenizer: Any, messages: Sequence[Message], *, generation: bool = False) -> str:
    """Return what the chat template makes of one conversation; arguments as of `render_chats`.

    Raises:
        TemplateRefusedError: If the template raises an error.
        CheckpointError: If it does not come to an end in time.
    """
    (answer,) = render_chats(tokenizer, [messages], generation=generation)
    if isinstance(answer, TemplateRefusedError):
        raise answer
    return answer


def _ask(request: Mapping[str, Any]) -> list[dict[str, str]]:
    process = _running()
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the process was started without pipes")
    line = ""
    try:
        process.stdin.write(json.dumps(request, default=str) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        pass  # it ended while it read
    except BaseException:  # Ctrl-C: the next request must not read this one's answer
        process.kill()
        _forget(process)
        raise
    if not line:
        code = _forget(process)
        if code == -signal.SIGALRM:
            raise CheckpointError(
                f"the model's chat template did not come to an end within {request['seconds']:.0f} "
                "seconds; look for a loop or a huge number in chat_template.jinja"
            )
        raise CheckpointError(
            f"the process that renders the model's chat template ended ({code}); look for a loop "
            "or a huge text in chat_template.jinja"
        )
    answers: list[dict[str, str]] = json.loads(line)
    return answers


def _running() -> subprocess.Popen[str]:
    """Return this process's renderer, started when it is first needed.

    A fork shares its parent's pipes, so it gets a renderer of its own.
    """
    process = _processes.get(os.getpid())
    if process is None:
        # -P: the folder of the program holds modules that are none of its own.
        process = _processes[os.getpid()] = subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )
    return process


def _forget(process: subprocess.Popen[str]) -> int:
    """Close the pipes of a renderer and wait for its end; return its exit code."""
    _processes.pop(os.getpid(), None)
    with process:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue
    return process.returncode


@atexit.register
def _end() -> None:
    process = _processes.get(os.getpid())
    if process is not None:
        _forget(process)
