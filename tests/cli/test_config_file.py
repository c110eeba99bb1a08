"""Configuration: precedence, origins, and what is said about what is wrong."""

import attrs
import pytest

from folkmoot.cli import config_file
from folkmoot.cli.config_command import as_toml
from folkmoot.cli.config_file import (
    SETTINGS,
    build,
    from_assignments,
    from_document,
    from_environment,
    from_flags,
    parse_member,
)
from folkmoot.core.config import ClientConfig, NodeConfig
from folkmoot.core.errors import ConfigError

FILE = """
node_id = 2
data_dir = "/var/lib/moot"

[raft]
heartbeat_s = 0.2

[[members]]
node_id = 1
peer_address = "a:7410"
client_address = "a:7400"

[[members]]
node_id = 2
peer_address = "b:7410"
client_address = "b:7400"

[client]
name = "worker"

[limits]
key_bytes_max = 100
"""


def message(*sources: str, environment: dict[str, str] | None = None, flag: str = "") -> str:
    """What is said about a wrong configuration."""
    with pytest.raises(ConfigError) as caught:
        build(
            *(from_document(text, "moot.toml") for text in sources),
            from_environment(environment or {}),
            from_assignments([flag] if flag else [], "--set"),
        )
    return str(caught.value)


def test_nothing_given_is_all_defaults() -> None:
    loaded = build()
    assert loaded.node == NodeConfig()
    assert loaded.client == ClientConfig()
    assert {given.origin for given in loaded.given.values()} == {"default"}


def test_a_file_reaches_every_class() -> None:
    loaded = build(from_document(FILE, "moot.toml"))
    assert loaded.node.node_id == 2
    assert loaded.node.raft.heartbeat_s == 0.2
    assert [member.client_address for member in loaded.node.members] == ["a:7400", "b:7400"]
    assert loaded.client.name == "worker"
    assert loaded.node.limits.key_bytes_max == loaded.client.limits.key_bytes_max == 100


def test_flags_win_over_the_environment_and_that_over_the_file() -> None:
    file = from_document(
        "[raft]\nheartbeat_s = 0.2\nelection_timeout_s = 2\nclock_drift = 0.2", "f"
    )
    environment = from_environment(
        {"FOLKMOOT_RAFT_ELECTION_TIMEOUT_S": "3", "FOLKMOOT_RAFT_CLOCK_DRIFT": "0.3"}
    )
    loaded = build(file, environment, from_assignments(["raft.clock_drift=0.4"], "--set"))
    raft = loaded.node.raft
    assert (raft.heartbeat_s, raft.election_timeout_s, raft.clock_drift) == (0.2, 3.0, 0.4)
    assert [
        loaded.given[f"raft.{name}"].origin
        for name in ("heartbeat_s", "election_timeout_s", "clock_drift", "window_batches")
    ] == [
        "f, raft.heartbeat_s",
        "environment, FOLKMOOT_RAFT_ELECTION_TIMEOUT_S",
        "flag --set raft.clock_drift",
        "default",
    ]


def test_every_field_of_every_class_is_a_setting_and_can_come_from_the_environment() -> None:
    paths = set(SETTINGS)
    for owner, prefix in ((NodeConfig, ""), (ClientConfig, "client.")):
        for field in attrs.fields(owner):
            path = prefix + field.name
            assert path in paths or any(known.startswith(field.name + ".") for known in paths), path
    assert len({setting.env for setting in SETTINGS.values()}) == len(SETTINGS)
    for setting in SETTINGS.values():
        text = str(setting.default) if setting.default not in (None, ()) else "1=a:1,b:2"
        given = from_environment({setting.env: text})[setting.path]
        assert type(given.value) is not str or setting.kind in (str, str | None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[raft]\nheartbeet_s = 1", "no setting raft.heartbeet_s; did you mean raft.heartbeat_s?"),
        ("[rafd]\nheartbeat_s = 1", "there is no setting rafd; did you mean raft?"),
        ("nodeid = 1", "there is no setting nodeid; did you mean node_id?"),
        ("raft = 1", "moot.toml: raft is a table: write [raft] and its keys below it"),
        ("[raft]\nheartbeat_s = 100", "raft.heartbeat_s is 100: it must lie between 0.001 and 60"),
        ("[raft]\nheartbeat_s = nan", "raft.heartbeat_s is nan: it must lie between 0.001 and 60"),
        ("[raft]\nheartbeat_s = 'a'", "raft.heartbeat_s is 'a': a number is needed"),
        ("[raft]\nwindow_batches = 1.5", "raft.window_batches is 1.5: a whole number is needed"),
        ("[storage]\nfsync = 1", "storage.fsync is 1: true or false is needed"),
        ("cluster = 1", "cluster is 1: a text is needed"),
        ("node_id = true", "node_id is True: a whole number is needed"),
        ("[raft", "moot.toml: Expected ']' at the end of a table declaration"),
        ("members = 1", "members is 1: write one [[members]] table for each"),
        ("[[members]]\nnode_id = 1", "a member lacks peer_address, client_address"),
        ("[[members]]\nnode = 1", "a member has no setting node; did you mean node_id?"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_place(text: str, said: str) -> None:
    assert said in message(text)
    assert "moot.toml" in message(text)


def test_a_rule_between_fields_names_the_origin_of_each() -> None:
    said = message(
        "[raft]\nheartbeat_s = 0.4", environment={"FOLKMOOT_RAFT_ELECTION_TIMEOUT_S": "0.6"}
    )
    assert "raft.heartbeat_s from moot.toml, raft.heartbeat_s" in said
    assert "raft.election_timeout_s from environment, FOLKMOOT_RAFT_ELECTION_TIMEOUT_S" in said


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"FOLKMOOT_RAFT_HEARTBEAT": "1"}, "did you mean FOLKMOOT_RAFT_HEARTBEAT_S?"),
        ({"FOLKMOOT_STORAGE_FSYNC": "maybe"}, "storage.fsync is 'maybe': true or false is needed"),
        ({"FOLKMOOT_NODE_ID": "one"}, "node_id is 'one': a whole number is needed"),
        ({"FOLKMOOT_MEMBERS": "1=a:1"}, "write NODE_ID=HOST:"),
        ({"FOLKMOOT_MEMBERS": "1=a:1,b:99999"}, "member 1: address 'b:99999'"),
        ({"FOLKMOOT_MEMBERS": "1=a:1,b:0"}, "address 'b:0' needs a port"),
    ],
)
def test_what_is_wrong_in_the_environment_is_told(environment: dict[str, str], said: str) -> None:
    assert said in message(environment=environment)


def test_variables_that_are_not_settings_are_left_alone() -> None:
    """Kubernetes gives every container such variables for a service that is called folkmoot."""
    assert not from_environment(
        {
            "PATH": "/bin",
            "FOLKMOOT_URL": "folkmoot://a",
            "FOLKMOOT_TOKEN": "7",
            "FOLKMOOT_PORT": "tcp://10.0.0.1:7400",
            "FOLKMOOT_PORT_7400_TCP_ADDR": "10.0.0.1",
            "FOLKMOOT_SERVICE_HOST": "10.0.0.1",
            "FOLKMOOT_SERVICE_PORT_CLIENTS": "7400",
            "FOLKMOOT_CLIENTS_SERVICE_HOST": "10.0.0.1",
        }
    )


def test_texts_become_the_types_of_their_fields() -> None:
    given = from_environment(
        {
            "FOLKMOOT_STORAGE_FSYNC": "No",
            "FOLKMOOT_RAFT_CACHE_BYTES": "1_000_000",
            "FOLKMOOT_RAFT_HEARTBEAT_S": "1",
            "FOLKMOOT_DATA_DIR": "",
            "FOLKMOOT_MEMBERS": "1=a:1,a:2; 2=[::1]:3,[::1]:4",
        }
    )
    assert given["storage.fsync"].value is False
    assert given["raft.cache_bytes"].value == 1_000_000
    assert type(given["raft.heartbeat_s"].value) is float
    assert given["data_dir"].value is None
    assert [member.client_address for member in given["members"].value] == ["a:2", "[::1]:4"]


@pytest.mark.parametrize("text", ["", "1", "1=", "x=a:1,a:2", "1=a:1", "0=a:1,a:2", "1=a,b"])
def test_a_member_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_member(text)


def test_a_flag_that_was_not_given_changes_nothing() -> None:
    assert from_flags({"node_id": None, "members": ()}) == {}
    assert from_flags({"data_dir": "d"})["data_dir"].origin == "flag --data-dir"


@pytest.mark.parametrize("flag", ["raft.heartbeat_s", "raft.heartbeat=1"])
def test_an_assignment_that_is_none_is_refused(flag: str) -> None:
    assert flag in message(flag=flag)


def test_what_is_shown_can_be_read_again() -> None:
    loaded = build(from_document(FILE + "\n[storage]\nfsync = false", "moot.toml"))
    for origin in (False, True):
        again = build(from_document(as_toml(loaded, origin=origin), "shown"))
        assert (again.node, again.client) == (loaded.node, loaded.client)


def test_there_is_no_second_list_of_settings() -> None:
    assert "heartbeat_s" not in vars(config_file)
