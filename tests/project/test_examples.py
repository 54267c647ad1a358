"""Examples in the pages don't wait for ever."""

from __future__ import annotations

import re

from tests.integration.reader.docs_examples import DOCS, examples

# By language: what connects to something, and a limit on how long it waits. Clients of the reader
# (`connect`) have one.
LIMITS = {
    "python": (r"redis\.|httpx\.", r"timeout"),
    "js": (r"createClient\(|fetch\(", r"socketTimeout:|AbortSignal\.timeout"),
    "ruby": (r"Redis\.new", r"timeout:"),
    "php": (r"->connect\(", r", 0\.2, null, 0, 0\.2\)"),
    "go": (r"store\.|http\.", r"WithTimeout|Timeout:"),
    "java": (r"store\.|CLIENT\.", r"new Jedis\(.+, \d+\)|\.timeout\("),
    "sh": (r"curl ", r"--max-time"),
}
# A stream is silent for 15 s at most, and Node's `fetch` gives up after five minutes of silence.
STREAM = "/changes/stream"


def test_examples__of_calls__have_a_timeout() -> None:
    found = {
        language: [
            example
            for page in sorted(DOCS.glob("*.md"))
            for example in examples(page.name, language)
            if re.search(uses, example.code) and STREAM not in example.code
        ]
        for language, (uses, _) in LIMITS.items()
    }
    assert all(found.values())
    endless = [
        example
        for language, (_, limit) in LIMITS.items()
        for example in found[language]
        if not re.search(limit, example.code)
    ]
    assert endless == []
