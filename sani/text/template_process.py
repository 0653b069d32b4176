"""The process that renders chat templates: a program by itself, which `sani.text.templates` starts.

A request is a line of JSON, and so is its answer. While it renders, the kernel's alarm clock runs.
Nothing handles the alarm, so it ends this process whatever the template does. A signal handler in
Python would wait for the end of the running C function, which ``{{ 9 ** 9 ** 9 }}`` never reaches.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

MEMORY = 2**31  # bytes that rendering may take beyond what the imports took; ours


def _limit_memory() -> None:
    """Let a template that needs more than `MEMORY` fail, where the system says what is in use."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    except (OSError, ValueError):  # another system, or a limit that is lower already
        return


def _answer(request: dict[str, Any], render: Any) -> list[dict[str, str]]:
    """Return each conversation's text, or the type of the error that the template raised."""
    answers = []
    for messages in request["conversations"]:
        try:
            (text,), _ = render(
                conversations=[messages],
                chat_template=request["template"],
                add_generation_prompt=request["generation"],
                **request["special_tokens"],
            )
            answers.append({"text": str(text)})
        except Exception as error:  # a template may refuse in any way it likes, and quote
            answers.append({"refused": type(error).__name__})
    return answers


def main() -> None:
    """Answer requests until there are no more."""
    # What a library prints must not get between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    os.environ["HF_HUB_OFFLINE"] = "1"
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    from transformers.utils.chat_template_utils import render_jinja_template

    _limit_memory()
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["seconds"])
        rendered = _answer(request, render_jinja_template)
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(rendered) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
