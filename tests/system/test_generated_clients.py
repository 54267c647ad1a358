"""The API description in other people's tools: a linter, and generated clients that are used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest

from tests.support.effort import thorough
from tests.support.node import node_folder, run_node
from tests.support.service import ADMIN_KEY, APP, Service, running

BIN = Path(sys.executable).parent

PYTHON = """
import json
import sys
from http import HTTPStatus

from cohort_client import AuthenticatedClient
from cohort_client.api.changes import get_changes
from cohort_client.api.cohort_webhooks import receive_webhook
from cohort_client.api.cohorts import get_cohort
from cohort_client.api.exports import export_ndjson
from cohort_client.api.sync_history import get_sync
from cohort_client.api.users_and_members import query_members
from cohort_client.models import User, UsersQuery, Webhook

client = AuthenticatedClient(base_url=sys.argv[1], token=sys.argv[2])
webhook = Webhook(
    cohort_name="Power users", cohort_id="abc123", in_cohort=True, users=[User("alice")]
)
print(receive_webhook.sync(client=client, body=webhook).changed)
asked = UsersQuery(user_ids=["alice", "bob"])
print([m.user_id for m in query_members.sync("abc123", client=client, body=asked).members])
print(query_members.sync("unknown", client=client, body=asked).reason)
print(get_cohort.sync("abc123", client=client).freshness.cadence_source)
print([change.change.value for change in get_changes.sync(client=client).changes])
print(json.loads(export_ndjson.sync("abc123", client=client))["userId"])
print(int(get_sync.sync_detailed("4711", client=client).status_code))
"""

TYPESCRIPT = """
import createClient from "openapi-fetch";
import type { paths } from "./cohorts.d.ts";

declare const process: { argv: string[] };
const client = createClient<paths>({
  baseUrl: process.argv[2],
  headers: { Authorization: `Bearer ${process.argv[3]}` },
});
const list = (items: string[]) => `['${items.join("', '")}']`;

const webhook = await client.POST("/api/v1/integration/amplitude/webhook", {
  body: {
    cohort_name: "Power users",
    cohort_id: "abc123",
    in_cohort: true,
    users: [{ user_id: "alice" }],
  },
});
console.log(webhook.data?.changed);
const query = (cohort_id: string) =>
  client.POST("/api/v1/cohorts/{cohort_id}/members/query", {
    params: { path: { cohort_id } },
    body: { userIds: ["alice", "bob"] },
  });
console.log(list((await query("abc123")).data!.members.map((member) => member.userId)));
console.log((await query("unknown")).error?.reason);
const path = { cohort_id: "abc123" };
const cohort = await client.GET("/api/v1/cohorts/{cohort_id}", { params: { path } });
const source: "learned" | "set" | null = cohort.data!.freshness.cadenceSource;
console.log(source === null ? "None" : source);
const changes = await client.GET("/api/v1/changes");
console.log(list(changes.data!.changes.map((change) => change.change)));
const lines = await client.GET("/api/v1/cohorts/{cohort_id}/members.ndjson", {
  params: { path },
  parseAs: "text",
});
console.log(JSON.parse(lines.data!).userId);
const sync = await client.GET("/api/v1/syncs/{sync_id}", {
  params: { path: { sync_id: "4711" } },
});
console.log(sync.response.status);
"""

PRINTED = ["1", "['alice']", "unknown_cohort", "None", "['entered']", "alice", "404"]


@pytest.fixture(scope="module")
def service(store_url: str) -> Iterator[Service]:
    env = {"REDIS_URL": store_url, "RATE_LIMIT": "off", "ADMIN_API_KEYS": f"{APP}:{ADMIN_KEY}"}
    with running(env) as service:
        yield service


@pytest.fixture
def description(service: Service, tmp_path: Path) -> Path:
    path = tmp_path / "openapi.json"
    path.write_bytes(service.request("GET", "/openapi.json").data)
    return path


@thorough
def test_redocly__with_its_recommended_rules__finds_no_error(
    description: Path, tmp_path: Path
) -> None:
    node_folder(tmp_path, "@redocly/cli")
    redocly = tmp_path / "node_modules" / "@redocly" / "cli" / "bin" / "cli.js"
    telemetry_off = {"REDOCLY_TELEMETRY": "off"}
    found = run_node(tmp_path, redocly, "lint", description, "--format", "json", env=telemetry_off)
    problems = json.loads(found[found.index("{") :])["problems"]
    assert [problem for problem in problems if problem["severity"] == "error"] == []
    assert [problem for problem in problems if "example" in problem["ruleId"]] == []


@thorough
def test_openapi_python_client__generated__calls_the_service(
    service: Service, description: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = which("openapi-python-client", path=str(BIN))
    if generator is None:
        pytest.skip("openapi-python-client is missing; make lint installs it")
    # Generators read a stream of lines as text if told to.
    config = tmp_path / "config.json"
    config.write_text('{"content_type_overrides": {"application/x-ndjson": "text/plain"}}')
    done = subprocess.run(
        [
            *(generator, "generate", "--path", description, "--config", config),
            *("--meta", "none", "--output-path", tmp_path / "cohort_client"),
        ],
        env={"PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stdout, done.stdout
    script = tmp_path / "use.py"
    script.write_text(PYTHON)
    used = subprocess.run(
        [sys.executable, script, service.url, ADMIN_KEY],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert used.returncode == 0, used.stdout + used.stderr
    assert used.stdout.splitlines() == PRINTED


@thorough
def test_openapi_typescript__generated__compiles_and_calls_the_service(
    service: Service, description: Path, tmp_path: Path
) -> None:
    node_folder(tmp_path, "openapi-typescript", "openapi-fetch", "typescript")
    modules = tmp_path / "node_modules"
    types = tmp_path / "cohorts.d.ts"
    run_node(tmp_path, modules / "openapi-typescript/bin/cli.js", description, "--output", types)
    (tmp_path / "use.ts").write_text(TYPESCRIPT)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    strict = ["--strict", "--target", "es2022", "--module", "nodenext"]
    run_node(tmp_path, modules / "typescript/bin/tsc", *strict, "use.ts")
    printed = run_node(tmp_path, "use.js", service.url, ADMIN_KEY)
    assert printed.splitlines() == PRINTED
