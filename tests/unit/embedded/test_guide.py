"""What ``make run`` prints."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit
from zlib import crc32

from app.embedded.data_dir import DataDir
from app.embedded.guide import guide
from app.settings import Settings

FOLDER = '/data/it\'s "here" $HOME \\ % #1?'


def text_for(environ: dict[str, str], keys: dict[str, str], embedded: bool = True) -> str:
    data = DataDir(Path(FOLDER))
    socket = data.socket if embedded else None
    return guide("http://127.0.0.1:8000", Settings.from_environ(environ), keys, data, socket)


def test_guide__generated_keys__are_shown_with_their_files() -> None:
    text = text_for({"API_KEYS": "k1"}, {"ingest": "k1", "admin": "the-admin-key"})
    assert f"ingest key: k1 (stored in {FOLDER}/ingest-key)" in text
    assert f"admin key: the-admin-key (stored in {FOLDER}/admin-key)" in text
    assert "curl -u k1: " in text


def test_guide__own_keys__are_not_shown() -> None:
    # Unlike anything in the interpreter's path, which the text contains.
    keys = ["ingest-3f9c1a7e5b2d", "admin-8d41c06be97f"]
    text = text_for({"API_KEYS": f"shop:{keys[0]}", "ADMIN_API_KEYS": keys[1]}, {})
    assert not [key for key in keys if key in text]
    assert "curl -u YOUR_KEY: " in text


def test_guide__prefix_partitions_and_app__are_those_of_the_users_key() -> None:
    environ = {"API_KEYS": "shop:key-1", "KEY_PREFIX": "p", "STORE_PARTITIONS": "4"}
    partition = crc32(b"test.user@email.com") % 4
    assert f"HGETALL 'p:{{shop:{partition}}}:user:test.user@email.com'" in text_for(environ, {})


def test_guide__odd_folder__is_quoted_for_the_shell_and_for_python() -> None:
    lines = text_for({"API_KEYS": "k"}, {}).splitlines()
    (redis_cli,) = [shlex.split(line) for line in lines if "redis-cli -s" in line]
    (reader,) = [shlex.split(line.rstrip("\\")) for line in lines if "--reader" in line]
    (python,) = [shlex.split(line) for line in lines if " -c " in line]
    assert redis_cli[2] == f"{FOLDER}/store.sock"
    assert unquote(urlsplit(reader[1]).path) == f"{FOLDER}/store.sock"
    constants = [n.value for n in ast.walk(ast.parse(python[2])) if isinstance(n, ast.Constant)]
    assert reader[1] in constants


def test_guide__own_store__does_not_show_its_address() -> None:
    environ = {"API_KEYS": "k", "REDIS_URL": "redis://:a-password@store.example/0"}
    text = text_for(environ, {}, embedded=False)
    assert "a-password" not in text
    assert 'redis-cli -u "$REDIS_URL" HGETALL ' in text


def test_guide__dashboard__comes_first_with_the_key_to_log_in_with() -> None:
    lines = text_for({"API_KEYS": "k1"}, {"ingest": "k1", "admin": "the-admin-key"}).split()
    assert lines[:3] == ["The", "dashboard:", "http://127.0.0.1:8000/"]
    text = text_for({"API_KEYS": "k1"}, {"ingest": "k1", "admin": "the-admin-key"})
    assert f"Log in with the admin key: the-admin-key (stored in {FOLDER}/admin-key)\n" in text
    assert text.count("the-admin-key") == 1
    assert "Log in" not in text_for({"API_KEYS": "k1", "ADMIN_API_KEYS": "mine"}, {"ingest": "k1"})
