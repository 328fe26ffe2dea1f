"""Claims about kdsweep.system.masking: what is hidden, and what stays readable."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsweep.system.masking import MASK, MaskedFormatter, is_secret, mask_files, mask_logs, masked, masked_text

SECRET = "geheim"

HIDDEN = [
    "postgresql://me:geheim@host/runs",
    "postgresql+psycopg://me:geheim/geheim@geheim@host:5432/runs?sslmode=require",
    "postgresql://me:ge'geheim@host/runs",
    "https://me:geheim@host:443/mlflow",
    "https://me:geheim/x@host",
    "There is nothing at /home/https:/me:geheim@host/weights.pth.",
    "https://geheim@host/repository.git",
    "could not connect to 'postgresql://me:geheim@host/runs': refused",
    "hydra.sweeper.storage=postgresql://me:geheim@host/runs",
    "postgresql://host/runs?user=me&password=geheim&sslmode=require",
    "+data.token=geheim",
    "++data.password='geheim geheim'",
    "+data.auth={user:geheim,password:geheim}",
    "kdsweep: data.token: `x` must hold, but got token='geheim'.",
    "Source(password='geheim', n=1)",
    "+data.token=geheim1,geheim2,geheim3",
    "data.token: `x` must hold, but got token='geheim'.",
    "password: my geheim phrase",
    "export HF_TOKEN=geheim",
    "MLFLOW_TRACKING_PASSWORD=geheim",
    "AWS_SECRET_ACCESS_KEY = geheim",
    '{"api_key": "geheim", "n": 1}',
    '"{\\"api_key\\": \\"geheim\\", \\"n\\": 1}"',
    '"credentials": {\n  "a": "geheim",\n  "b": ["geheim"]\n}',
    "data:\n  password: my geheim phrase\n  n: 1",
    "Authorization: Bearer geheim-geheim",
    "curl -H 'authorization: Basic geheim='",
    "accessToken: geheim",
    "Bearer geheim.geheim.geheim",
    "-----BEGIN RSA PRIVATE KEY-----\ngeheim\n-----END RSA PRIVATE KEY-----",
]

READABLE = [
    "http://127.0.0.1:5000",
    "http://[::1]:5000/a@b",
    "http://host:80/path?mail=a@b.c",
    "sqlite:////home/me/mlflow.db",
    "postgresql://me@host/runs",
    '{"uri":"http://127.0.0.1:5000","mail":"me@host"}',
    "pass: 3, n_passes=7, tokenizer: words, n_tokens=512, key: left, seed=0",
    "token: null",
    "password=${oc.env:PASSWORD}",
    "'loss.alpha=0.3', 'paths.root=/data/author/monkey'",
    "12 tokens: a b c",
    "data.token: there is no such key. `kdsweep --help` lists them all.",
    "scheduled://task-sk-1",
]

SHAPES = [
    *("ghp_" + "a1B2" * 9, "github_pat_" + "a1B2" * 8, "hf_" + "aB1" * 11, "glpat-" + "a1B2" * 5, "sk-" + "a1B2" * 8),
    *("xoxb-1234567890-abc", "AKIA" + "ABCD1234" * 2, "AIza" + "aB1_-" * 7, "dapi" + "0a" * 16),
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
]


@pytest.mark.parametrize("text", HIDDEN)
def test_no_secret_is_left_in_a_text(text: str) -> None:
    """Credentials in URIs and values of secret-like keys give way to ***, however they are written."""
    assert SECRET not in masked_text(text)
    assert MASK in masked_text(text)


@pytest.mark.parametrize("text", READABLE)
def test_what_is_no_secret_stays(text: str) -> None:
    """Addresses, counts, paths, and the names of environment variables are left as they are."""
    assert masked_text(text) == text


@pytest.mark.parametrize("token", SHAPES)
def test_well_known_tokens_are_found_anywhere(token: str) -> None:
    """A token is hidden because of its shape, whatever its key."""
    assert masked_text(f"[x={token}, y=1]") == f"[x={MASK}, y=1]"


@pytest.mark.parametrize("text", [*HIDDEN, *SHAPES])
def test_what_is_masked_stays_as_it_is(text: str) -> None:
    """Masking twice gives the same as masking once."""
    assert masked_text(masked_text(text)) == masked_text(text)


def test_the_user_and_the_rest_of_a_uri_stay() -> None:
    """A masked URI still says which store it is."""
    uri = "postgresql+psycopg://me:geheim@host:5432/runs?sslmode=require"
    assert masked_text(uri) == "postgresql+psycopg://me:***@host:5432/runs?sslmode=require"


def test_a_mapping_keeps_its_form() -> None:
    """Only secrets change: nested, in lists, below a secret-like key, and in strings of any key."""
    config = {
        "hf_token": "geheim",
        "auth": {"user": "geheim", "number": 4711, "on": True, "nothing": None},
        "data": {"root": "s3://me:geheim@host/x", "n": 3, "password": "${oc.env:PASSWORD}"},
        "overrides": ["+x.token=geheim", "seed=0"],
    }
    assert masked(config) == {
        "hf_token": MASK,
        "auth": {"user": MASK, "number": MASK, "on": True, "nothing": None},
        "data": {"root": "s3://me:***@host/x", "n": 3, "password": "${oc.env:PASSWORD}"},
        "overrides": ["+x.token=***", "seed=0"],
    }
    assert config["hf_token"] == SECRET


def test_flat_keys_are_understood() -> None:
    """Parameters as MLflow has them, with their dots, are masked too."""
    assert masked({"data.token": "geheim", "loss.alpha": 0.5}) == {"data.token": MASK, "loss.alpha": 0.5}


@pytest.mark.parametrize("key", ["password", "PGPASSWORD", "hf_token", "apiKey", "api-key", "client.secret", "db_pass"])
def test_secret_keys(key: str) -> None:
    """Keys of the usual spellings count as secret."""
    assert is_secret(key)


@pytest.mark.parametrize("key", ["n_passes", "tokenizer", "seed", "key", "author", "path", "monkey", "compass", "pass"])
def test_harmless_keys(key: str) -> None:
    """Keys that hold such a word in another do not."""
    assert not is_secret(key)


def test_hydras_files_are_masked(tmp_path: Path) -> None:
    """That holds in a run's folder and in .hydra, and for a value over several lines; a clean file isn't touched."""
    (tmp_path / ".hydra").mkdir()
    secret, clean = tmp_path / ".hydra" / "overrides.yaml", tmp_path / "multirun.yaml"
    secret.write_text(yaml.safe_dump(["+x.token=geheim", "seed=0", {"password": "geheim " * 30, "rate": 1e-5}]))
    clean.write_text("a:   1 # by hand\ntoken: ${x}\n")
    mask_files(tmp_path)
    assert yaml.safe_load(secret.read_text()) == ["+x.token=***", "seed=0", {"password": MASK, "rate": 1e-5}]
    assert clean.read_text() == "a:   1 # by hand\ntoken: ${x}\n"
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == [".hydra", "multirun.yaml", "overrides.yaml"]


def test_a_file_that_is_no_yaml_is_masked_as_text(tmp_path: Path) -> None:
    """Damage doesn't keep a secret in a file."""
    (tmp_path / "a.yaml").write_text("{ token: geheim")
    mask_files(tmp_path)
    assert SECRET not in (tmp_path / "a.yaml").read_text()


def test_log_lines_and_their_stack_traces_are_masked() -> None:
    """A formatter that loggers can be given hides what a message, its arguments or an exception tell."""
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, "token=%s", ("geheim",), None)
    try:
        raise OSError("no answer from https://me:geheim@host")
    except OSError as error:
        record.exc_info = (OSError, error, None)
    assert MaskedFormatter().format(record) == f"token={MASK}\nOSError: no answer from https://me:{MASK}@host"


def test_the_log_files_of_a_process_are_masked_once(tmp_path: Path) -> None:
    """Whatever handlers there are write through a masking formatter, which keeps theirs."""
    root, handler = logging.getLogger(), logging.FileHandler(tmp_path / "run.log")
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    known = {one: one.formatter for one in root.handlers}
    root.addHandler(handler)
    try:
        mask_logs()
        formatter = handler.formatter
        mask_logs()
        assert handler.formatter is formatter
        logging.getLogger("kdsweep.x").error("password=geheim")
    finally:
        root.removeHandler(handler)
        handler.close()
        for one, before in known.items():
            one.setFormatter(before)
    assert (tmp_path / "run.log").read_text() == "ERROR password=***\n"


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.text(alphabet="ab:=@/'\"\\{}[] \n,.-?&***password token http://"), st.integers(1, 3))
def test_any_text_can_be_masked(text: str, times: int) -> None:
    """No text raises, and a password's value is gone in whatever surroundings."""
    assert "geheim" not in masked_text((f"{text}\n" * times) + "password=geheim\n" + text)


@pytest.mark.slow
@pytest.mark.parametrize("piece", ["a", "a:", "http://", "x://a:", "token={\n", "token='", "token: \n", "eyJ", "a.b"])
def test_a_long_text_is_masked_in_seconds(piece: str) -> None:
    """No text makes the search take quadratic time (the whole test would run into its time limit)."""
    masked_text(piece * (4_000 if piece.startswith("token=") else 200_000) + " @")
