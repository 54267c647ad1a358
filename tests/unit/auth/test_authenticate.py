"""By which address failed logins are counted."""

from __future__ import annotations

import pytest

from app.auth.authenticate import _network


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:50123", "192.0.2.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2:3::4]:50123", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("", ""),
        ("unix:", "unix:"),
    ],
)
def test_network__of_an_address__belongs_to_one_caller(address: str, network: str) -> None:
    assert _network(address) == network
