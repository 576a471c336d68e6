"""Replies that any test of the server may use."""

import federation as fed
import pytest
from flwr.app import Message
from replies import NAMES


@pytest.fixture(scope="session")
def replies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Message]:
    """A good reply of each site to round 0, trained once for all tests that damage one."""
    config = fed.settings("federation.rounds=1")
    sites = fed.make_sites(tmp_path_factory.mktemp("sites"), NAMES)
    return {site.parent.name: fed.ask(config, site) for site in sites}


@pytest.fixture(scope="session")
def replies_int8(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Message]:
    """The same, of sites that send int8."""
    config = fed.settings("federation.rounds=1", "federation.uplink=int8")
    sites = fed.make_sites(tmp_path_factory.mktemp("sites"), NAMES)
    return {site.parent.name: fed.ask(config, site) for site in sites}
