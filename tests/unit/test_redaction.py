"""Command lines show no secret: by table, by hostile input, in linear time."""

from __future__ import annotations

import time

import pytest
from sandfleet_config.redaction import HIDDEN, MAX_CHARS, hide_in_text, hide_secrets, is_secret_name

SECRET = "hunter2-Zx"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"

HIDDEN_CASES = [
    (["x", f"--token={SECRET}"], "x --token=***"),
    (["x", "--token", SECRET, "a"], "x --token *** a"),
    (["x", f"-token={SECRET}"], "x -token=***"),
    (["x", f"--token:{SECRET}"], "x --token:***"),
    (["x", "--api-key", SECRET], "x --api-key ***"),
    (["x", f"--dbPassword={SECRET}"], "x --dbPassword=***"),
    (["x", "--authToken", SECRET], "x --authToken ***"),
    (["x", "--key", SECRET], "x --key ***"),
    (["x", "--password", "1234"], "x --password ***"),
    (["x", "--password", f"-{SECRET}"], "x --password ***"),
    (["env", f"API_KEY={SECRET}", "run"], "env API_KEY=*** run"),
    (["env", f"AWS_SECRET_ACCESS_KEY={SECRET}"], "env AWS_SECRET_ACCESS_KEY=***"),
    (["env", f"AWS_ACCESS_KEY_ID={SECRET}"], "env AWS_ACCESS_KEY_ID=***"),
    (["env", f"PGPASSWORD={SECRET}"], "env PGPASSWORD=***"),
    (["env", f"OPENAI_API_KEY_PROD={SECRET}"], "env OPENAI_API_KEY_PROD=***"),
    (["sh", "-c", f"export TOKEN={SECRET}; run"], "sh -c 'export TOKEN=***; run'"),
    (["sh", "-c", f'TOKEN="{SECRET} two" run'], "sh -c 'TOKEN=\"***\" run'"),
    (["python3", "-c", f"password = '{SECRET}'"], "python3 -c \"password = '***'\""),
    (["python3", "-c", f'd = {{"api_key": "{SECRET}"}}'], 'python3 -c \'d = {"api_key": "***"}\''),
    (["python3", "-c", f"os.environ['TOKEN'] = '{SECRET}'"], "python3 -c \"os.environ['TOKEN'] = '***'\""),
    (["x", f'{{"password": "a\\"{SECRET}", "n": 1}}'], 'x \'{"password": "***", "n": 1}\''),
    (["x", f"password='a\\'{SECRET}'"], "x password='***'"),
    (["curl", f"https://me:{SECRET}@host/x"], "curl https://***@host/x"),
    (["curl", f"https://{SECRET}@host/x"], "curl https://***@host/x"),
    (["curl", f"https://me:a/{SECRET}@host/x"], "curl https://***@host/x"),
    (["curl", f"https://me:{SECRET}"], "curl https://***"),
    (["x", f"redis://:{SECRET}@host:6379/0"], "x redis://***@host:6379/0"),
    (["x", f"--url=postgres://u:{SECRET}@h/db"], "x --url=postgres://***@h/db"),
    (["curl", "-H", f"Authorization: Bearer {SECRET}", "u"], "curl -H 'Authorization: ***' u"),
    (["curl", "-H", f"authorization:Basic {SECRET}"], "curl -H authorization:***"),
    (["curl", "-H", f"Cookie: a=1; session={SECRET}"], "curl -H 'Cookie: ***'"),
    (["curl", "-H", f"X-Api-Key: {SECRET}"], "curl -H 'X-Api-Key: ***'"),
    (["echo", "Authorization:", "Bearer", SECRET], "echo Authorization: Bearer ***"),
    (["echo", "Authorization:", SECRET], "echo Authorization: ***"),
    (["echo", "Bearer", SECRET], "echo Bearer ***"),
    (["sh", "-c", f"curl -H Bearer\t{SECRET}"], "sh -c 'curl -H Bearer\\t***'"),
    (["curl", "-u", f"me:{SECRET}"], "curl -u me:***"),
    (["curl", "--user", f"me:{SECRET}"], "curl --user me:***"),
    (["x", "ghp_" + "a1" * 18], "x ***"),
    (["x", "AKIAIOSFODNN7EXAMPLE"], "x ***"),
    (["x", "sk-proj-abcdefghijklmnop"], "x ***"),
    (["x", "hf_" + "b2" * 17], "x ***"),
    (["x", JWT], "x ***"),
    (["x", "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n"], "x ***"),
    (["x", "kJ8sD2fQ9zLm3NvB7xRt5WcY1pHg6TqA"], "x ***"),
    (["sh", "-c", f"run --token={SECRET} a"], "sh -c 'run --token=*** a'"),
    (["sh", "-c", f"run --token {SECRET} a"], "sh -c 'run --token *** a'"),
    (["sh", "-c", f"run --password '{SECRET} b' a"], "sh -c \"run --password '***' a\""),
    (["sh", "-c", f"a --verbose --token {SECRET}"], "sh -c 'a --verbose --token ***'"),
    (["sh", "-c", f"curl -u me:{SECRET} u"], "sh -c 'curl -u me:*** u'"),
    (["sh", "-c", f"curl --user=me:{SECRET}"], "sh -c 'curl --user=me:***'"),
    (["sh", "-c", f"a token b --password {SECRET}"], "sh -c 'a token b --password ***'"),
    (["x", f"get?token={SECRET}&a=1"], "x get?token=***&a=1"),
]


@pytest.mark.parametrize(("command", "shown"), HIDDEN_CASES)
def test_secrets_are_hidden(command: list[str], shown: str) -> None:
    line = hide_secrets(command)
    assert line == shown
    assert SECRET not in line


SHOWN_CASES = [
    ["python3", "-c", "print(6*7)"],
    ["x", "-p", "8080"],
    ["x", "--max-tokens=256", "--tokenizer", "gpt2"],
    ["x", "--token-file=/run/token", "--token-limit", "10"],
    ["x", "--sort-key=name", "PUBLIC_KEY=a"],
    ["x", "https://host:8080/@scope/pkg", "https://host/a:b@c"],
    ["x", "https://[::1]:80/x", "http://host:80"],
    ["docker", "-u", "1000:1000", "--user", "nobody"],
    ["x", "--auth", "--verbose"],
    ["x", "--auth", "-v"],
    ["x", "sha256:" + "0a1b2c3d" * 8, "2f1c5a1e-9d0b-4c7e-8b1a-000000000000"],
    ["pytest", "tests/test_things.py::TestALongNameOfATestCase2WithManyWords"],
    ["x", "/very/long/path/with/many/Parts/and/Some/2Numbers/in/it/file.txt"],
    ["author", "--authors=me", "compass=1", "patience=2", "monkey=3", "keyboard=us"],
]


@pytest.mark.parametrize("command", SHOWN_CASES)
def test_other_words_stay(command: list[str]) -> None:
    assert hide_secrets(command) == " ".join(command)


def test_other_words_stay_in_a_script() -> None:
    script = "run --auth --verbose -u 1000:1000 the token is --max-tokens 5 key value"
    assert hide_secrets(["sh", "-c", script]) == f"sh -c '{script}'"


@pytest.mark.parametrize("name", ["token", "GITHUB_TOKEN", "clientSecret", "db.password", "x-api-key", "sessionCookie"])
def test_secret_names(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["", "_", "tokens", "tokenizer", "passes", "keynote", "password_file", "group_key"])
def test_plain_names(name: str) -> None:
    assert not is_secret_name(name)


def test_the_line_is_one_printable_line() -> None:
    line = hide_secrets(["a\nb", "\x1b[31m", "\u202eevil", "--token", "x\ny"])
    assert line == r"'a\nb' '\x1b[31m' '\u202eevil' --token ***"


def test_a_long_command_is_cut_and_shows_no_half_of_a_secret() -> None:
    line = hide_secrets(["sh", "-c", "a " * 400 + "b" * 180 + f" https://me:{SECRET}{'x' * 200}@host"])
    assert line.endswith("b...'")
    assert len(line) < MAX_CHARS + 20
    assert hide_secrets(["x" * 5000]) == "..."
    assert len(hide_secrets(["x"] * 100_000)) <= MAX_CHARS + 20


HOSTILE = [
    "a" * 4000,
    "token" * 800,
    "token " * 660,
    "token=" * 660,
    "token  =  " * 400,
    'token="' * 570,
    'token="\\' * 500,
    'token="' + "\\" * 3900,
    "://" * 1300,
    "a:b@" * 1000,
    "://a:b" * 660,
    "a." * 2000,
    "-" * 4000,
    "a-" * 2000,
    "--a " * 1000,
    "--token " * 500,
    "-u a" * 1000,
    "-u " + "a" * 3900,
    "A1b2" * 1000,
    "eyJ" * 1300,
    "eyJaaaaaaaaa." * 300,
    "bearer " * 570,
    "bearer" + " " * 3900,
    "'\"" * 2000,
    "-----BEGIN " * 360,
    "$" * 4000,
    "key:" * 1000,
    "aB" * 2000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_words_take_linear_time(text: str) -> None:
    """Each form once short and once four times as long takes about four times as long."""

    def measure(word: str) -> float:
        best = 1.0
        for _ in range(5):
            begin = time.thread_time()
            hide_in_text(word)
            best = min(best, time.thread_time() - begin)
        return best

    quarter, whole = measure(text[: len(text) // 4]), measure(text)
    assert whole < 12 * quarter + 0.002
    assert whole < 0.05


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_secret_in_hostile_text_is_hidden(text: str) -> None:
    text = text[:400]
    for command in ([text, f"--password={SECRET}"], [f"{text} PASSWORD={SECRET}"], [f"x PASSWORD={SECRET} {text}"]):
        assert SECRET not in hide_secrets(command)


def test_hidden_is_what_stands_for_a_secret() -> None:
    assert hide_secrets(["--token", SECRET]) == f"--token {HIDDEN}"
