"""What identifies a run, and what a morph carries."""

import json

import numpy as np
import pytest
from omegaconf import open_dict
from tiny_profile import composed

import adjointdeis
from adjointdeis.evaluation.provenance import NOTICE, read_provenance, sources_match
from adjointdeis.faces.image_io import read_image, write_image
from adjointdeis.harness.provenance import config_hash, environment, git_revision, morph_text


@pytest.fixture
def cfg():
    return composed(["+experiment=table1_first"])


def changed(cfg, key: str, value: object) -> str:
    copy = cfg.copy()
    with open_dict(copy):
        node = copy
        *parents, last = key.split(".")
        for name in parents:
            node = node[name]
        node[last] = value
    return config_hash(copy)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("paths.run", "elsewhere"),
        ("paths.outputs", "elsewhere"),
        ("trainer.devices", 8),
        ("trainer.num_nodes", 2),
        ("trainer.strategy", "ddp"),
        ("threads", 7),
        ("optimisation.batch_size", 1),
        ("optimisation.batch_size", "auto"),
        ("logger.csv.name", "other"),
        ("force", True),
    ],
)
def test_where_it_runs_does_not_count(cfg, key: str, value: object) -> None:
    assert changed(cfg, key, value) == config_hash(cfg)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("seed", None),
        ("name", "other"),
        ("optimisation.steps", 11),
        ("optimisation.keep", "best"),
        ("data.limit", 3),
        ("data.faces", "elsewhere"),
        ("assets.root", "elsewhere"),
        ("rows.exact.solver.clip_x0", True),
        ("rows.exact.encoding_steps", 20),
        ("optimizer.lr", 0.2),
        ("protocol.fmr", [0.01]),
        ("protocol.replicates", 10),
        ("judges", {}),
        ("trainer.precision", "bf16-mixed"),
        ("task._target_", "other"),
    ],
)
def test_everything_else_counts(cfg, key: str, value: object) -> None:
    assert changed(cfg, key, value) != config_hash(cfg)


def test_only_execution_is_left_out(cfg) -> None:
    """A key that is added to the root counts until somebody decides otherwise here."""
    left_out = {key for key in cfg if changed(cfg, str(key), "another value") == config_hash(cfg)}
    assert left_out == {"paths", "logger", "force", "dry_run", "threads"}


def test_hash_is_stable_over_the_order_of_keys(cfg) -> None:
    copy = cfg.copy()
    with open_dict(copy):
        seed = copy.pop("seed")
        copy.seed = seed
    assert config_hash(copy) == config_hash(cfg)
    assert len(config_hash(cfg)) == 16


def test_a_morph_carries_its_origin(tmp_path) -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    source = tmp_path / "001_03.png"
    write_image(source, image)
    from adjointdeis.harness.benchmark import file_hash

    text = morph_text("dim_a", "0123456789abcdef", {source.name: file_hash(source)})
    write_image(tmp_path / "morph.png", image, text)
    found = read_provenance(tmp_path / "morph.png")
    assert found["attack"] == "dim_a"
    assert found["config_hash"] == "0123456789abcdef"
    assert found["version"] == adjointdeis.__version__
    assert found["notice"] == NOTICE
    assert sources_match(found, [source])
    assert not sources_match(found, [tmp_path / "morph.png"])
    np.testing.assert_array_equal(read_image(tmp_path / "morph.png"), image)


def test_a_run_says_versions_and_machine_class() -> None:
    facts = environment()
    assert {"python", "torch", "lightning", "adjointdeis"} <= facts["versions"].keys()
    assert "threads" in facts["machine"]
    # No host name, no user, no path.
    assert "/" not in json.dumps(facts)


def test_git_revision_is_a_commit_or_nothing() -> None:
    revision = git_revision()
    assert revision is None or len(revision.rstrip("+")) == 12
