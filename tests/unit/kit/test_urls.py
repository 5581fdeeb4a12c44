"""Which URLs are usable, and that what is said of the others holds no part of them."""

import pytest

from services.kit.urls import database_url_problem, redis_url_problem


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://h/x",
        "postgres://u:p%40ss%2Fw@h:5432/x?sslmode=require",
        "postgresql://h1:1,h2/x",
        "postgresql://[::1]:5/x",
        "postgresql:///x?host=/run/postgresql",
        "host=h port=5432 dbname=x",
    ],
)
def test_what_libpq_understands_is_fine(url: str) -> None:
    assert database_url_problem(url) is None


@pytest.mark.parametrize(
    "url",
    [
        "mysql://bob:s3cret@h/x",
        "postgresql+psycopg://bob:s3cret@h/x",
        "s3cret",
        "postgresql://h/x?s3cret=1",
        "postgresql://bob:pa@s3cret@h/x",
        "postgresql://bob:s3cret/a@h/x",
        "postgresql://h:0/x",
        "postgresql://h:65536/x",
    ],
)
def test_what_libpq_would_misunderstand_is_refused_without_a_word_of_it(url: str) -> None:
    problem = database_url_problem(url)
    assert problem is not None
    assert "s3cret" not in problem


@pytest.mark.parametrize(
    "url", ["redis://h", "redis://u:p@h:1/0", "rediss://h:1/2?socket_timeout=2", "unix:///run/s?db=1"]
)
def test_what_the_client_understands_is_fine(url: str) -> None:
    assert redis_url_problem(url) is None


@pytest.mark.parametrize(
    "url",
    [
        "http://:s3cret@h",
        "s3cret",
        "redis://u:s3cret/a@h:1/0",
        "redis://h:99999",
        "redis://h?s3cret=1",
        "redis://h?db=s3cret",
    ],
)
def test_what_the_client_would_misunderstand_is_refused_without_a_word_of_it(url: str) -> None:
    problem = redis_url_problem(url)
    assert problem is not None
    assert "s3cret" not in problem
