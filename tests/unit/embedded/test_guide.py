"""What ``make run`` prints."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit
from zlib import crc32

from app.embedded.data import DataDir
from app.embedded.guide import Guide
from app.settings import Settings

FOLDER = '/data/it\'s "here" $HOME \\ % #1?'


def guide(environ: dict[str, str], made_keys: dict[str, str], embedded: bool = True) -> str:
    return Guide(
        url="http://127.0.0.1:8000",
        settings=Settings.from_environ(environ),
        made_keys=made_keys,
        data=DataDir(Path(FOLDER)),
        embedded=embedded,
    ).text()


def test_text__keys_made__are_shown_with_their_files() -> None:
    text = guide({"API_KEYS": "k1"}, {"ingest": "k1", "admin": "k2"})
    assert f"ingest key: k1 (kept in {FOLDER}/ingest-key)" in text
    assert f"admin key: k2 (kept in {FOLDER}/admin-key)" in text
    assert "curl -u k1: " in text


def test_text__own_keys__are_not_shown() -> None:
    text = guide({"API_KEYS": "shop:my-own-key", "ADMIN_API_KEYS": "my-admin-key"}, {})
    assert "my-" not in text
    assert "curl -u YOUR_KEY: " in text


def test_text__prefix_partitions_and_app__are_those_of_the_users_key() -> None:
    environ = {"API_KEYS": "shop:key-1", "KEY_PREFIX": "p", "STORE_PARTITIONS": "4"}
    partition = crc32(b"test.user@email.com") % 4
    assert f"HGETALL 'p:{{shop:{partition}}}:user:test.user@email.com'" in guide(environ, {})


def test_text__odd_folder__is_quoted_for_the_shell_and_for_python() -> None:
    lines = guide({"API_KEYS": "k"}, {}).splitlines()
    (redis_cli,) = [shlex.split(line) for line in lines if "redis-cli -s" in line]
    (reader,) = [shlex.split(line.rstrip("\\")) for line in lines if "--reader" in line]
    (python,) = [shlex.split(line) for line in lines if " -c " in line]
    assert redis_cli[2] == f"{FOLDER}/store.sock"
    assert unquote(urlsplit(reader[1]).path) == f"{FOLDER}/store.sock"
    constants = [n.value for n in ast.walk(ast.parse(python[2])) if isinstance(n, ast.Constant)]
    assert f"{FOLDER}/store.sock" in constants


def test_text__own_store__does_not_show_its_address() -> None:
    environ = {"API_KEYS": "k", "REDIS_URL": "redis://:a-password@store.example/0"}
    text = guide(environ, {}, embedded=False)
    assert "a-password" not in text
    assert 'redis-cli -u "$REDIS_URL" HGETALL ' in text


def test_text__dashboard__comes_first_with_the_key_to_log_in_with() -> None:
    lines = guide({"API_KEYS": "k1"}, {"ingest": "k1", "admin": "k2"}).split()
    assert lines[:3] == ["The", "dashboard:", "http://127.0.0.1:8000/"]
    text = guide({"API_KEYS": "k1"}, {"ingest": "k1", "admin": "k2"})
    assert f"Log in with the admin key: k2 (kept in {FOLDER}/admin-key)\n" in text
    assert text.count("k2") == 1
    assert "Log in" not in guide({"API_KEYS": "k1", "ADMIN_API_KEYS": "mine"}, {"ingest": "k1"})
