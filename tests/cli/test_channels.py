"""`seghiero channels`: channels and strides as JSON, and their check against a real network."""

from __future__ import annotations

import json

from support.processes import seghiero


def test_channels_equal_the_guide(tmp_path):
    rows = json.loads(seghiero("channels", "--json", cwd=tmp_path).stdout)
    table = {(row["type"], row.get("depth", row.get("variant"))): row["channels"] for row in rows}
    wide, narrow = [256, 512, 1024, 2048], [64, 128, 256, 512]
    assert table == {
        **{("resnet", depth): narrow for depth in (18, 34)},
        **{("resnet", depth): wide for depth in (50, 101, 152)},
        ("convnext", "tiny"): [96, 192, 384, 768],
        ("convnext", "small"): [96, 192, 384, 768],
        ("convnext", "base"): [128, 256, 512, 1024],
        ("convnext", "large"): [192, 384, 768, 1536],
        ("convnext", "xlarge"): wide,
        ("segformer", "mit-b0"): [32, 64, 160, 256],
        **{("segformer", f"mit-b{i}"): [64, 128, 320, 512] for i in range(1, 6)},
    }
    assert all(row["strides"] == [4, 8, 16, 32] for row in rows)


def test_channels_of_a_config_follow_its_output_stride(run, small):
    small.write_text(small.read_text().replace("depth: 18", "depth: 50, output_stride: 8"))
    code, out, _ = run("channels", "--config", small, "--json")
    assert code == 0
    assert json.loads(out) == [
        {"type": "resnet", "depth": 50, "channels": [256, 512, 1024, 2048], "strides": [4, 8, 8, 8]}
    ]


def test_channels_verify_compares_with_a_real_forward(run):
    code, out, _ = run("channels", "resnet", "--depth", "18", "--verify", "--json")
    assert code == 0
    assert json.loads(out)[0]["verified"] is True


def test_channels_of_a_depth_or_variant_of_any_backbone(run):
    code, out, _ = run("channels", "--depth", "50", "--json")
    assert code == 0
    assert [(row["type"], row["depth"]) for row in json.loads(out)] == [("resnet", 50)]
    code, out, _ = run("channels", "--variant", "mit-b0", "--json")
    assert [(row["type"], row["variant"]) for row in json.loads(out)] == [("segformer", "mit-b0")]
    for words, part in (
        (["--depth", "51"], "no backbone has depth '51'. Known: 18, 34"),
        (["--depth", "50", "--variant", "tiny"], "give either --depth or --variant"),
        (["convnext", "--depth", "50"], "use --variant"),
    ):
        code, _, err = run("channels", *words)
        assert (code, part in err) == (2, True), err
