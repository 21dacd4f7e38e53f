"""Another service, which knows a URL and a token alone: `python -m examples.http_tasks.caller URL PROJECT`."""

from __future__ import annotations

import os
import sys

import httpx


def main(url: str, project: str) -> int:
    """Order the README of `project`; prints the answer, and returns 0 if it was accepted."""
    token = os.environ.get("TASKS_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = httpx.post(f"{url}/api/jobs/readme", json={"project": project}, headers=headers)
    print(answer.status_code, answer.text)
    return 0 if answer.is_success else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
