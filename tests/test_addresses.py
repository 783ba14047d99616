"""No user name, password or token of a store's address is shown or kept."""

import pytest

from aumn.addresses import has_password, hide, public

PUBLIC = {
    "http://lab:5000": "http://lab:5000",
    "http://lab:5000/mlflow": "http://lab:5000/mlflow",
    "sqlite:////home/me@lab/mlflow.db": "sqlite:////home/me@lab/mlflow.db",
    "http://me:pw@lab:5000": "http://***@lab:5000",
    "http://me:p/w@lab:5000/x": "http://***@lab:5000/x",
    "http://me:p@w@lab": "http://***@lab",
    "http://me:p w@lab": "http://***@lab",
    "http://me:p?w@lab": "http://***",
    "http://t0ken@lab": "http://***@lab",
    "postgresql://lab/db?user=me&password=pw": "postgresql://lab/db?***",
    "postgresql://lab/db?user=me&password=p@w": "postgresql://***",
    "https://lab/?token=pw": "https://lab/?***",
}


@pytest.mark.parametrize("address", PUBLIC)
def test_scheme_host_and_path_alone_are_shown(address):
    assert public(address) == PUBLIC[address]


@pytest.mark.parametrize(
    ("address", "text", "shown"),
    [
        ("http://me:s3cret@lab", "HTTPConnectionPool(host='me:s3cret@lab')", "HTTPConnectionPool(host='***@lab')"),
        ("http://me:s3/cret@lab", "nonnumeric port: 's3'", "nonnumeric port: '***'"),
        ("http://me:s3%2Fcret@lab", "user 'me' with password 's3/cret'", "user '***' with password '***'"),
        ("mysql://lab/db?password=s3cret", "access denied using s3cret", "access denied using ***"),
        (
            "",
            "see http://me:s3cret@lab/x, or 'mysql://lab/?token=s3cret'",
            "see http://***@lab/x, or 'mysql://lab/?***'",
        ),
        ("sqlite:////home/lab/mlflow.db", "/home/lab/mlflow.db is locked", "/home/lab/mlflow.db is locked"),
    ],
)
def test_what_a_library_quotes_of_an_address_is_hidden(address, text, shown):
    assert hide(text, address) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://me:pw@lab",
        "--uri=http://me:p/w@lab",
        "http://me:p w@lab",
        "http://lab?token=x",
        "x://lab/?a=b&password=x",
    ],
)
def test_a_password_is_seen(text):
    assert has_password(text)


@pytest.mark.parametrize(
    "text",
    ["http://me@lab", "http://lab:5000/me@there", "sqlite:///a:b", "postgresql://lab/db?sslmode=require", "a:b@c"],
)
def test_what_is_no_password_is_allowed(text):
    assert not has_password(text)
