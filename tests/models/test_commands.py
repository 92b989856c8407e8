"""The commands that run a checkpoint, on small random ones with a tokenizer of their own."""

from __future__ import annotations

import json
import re
import string
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from spikingbrain_hal import use_backend
from spikingbrain_hal.calls.selection import register_backend, unregister_backend
from spikingbrain_hal.cli.app import app
from spikingbrain_hal.cli.inspect import State
from spikingbrain_hal.nn import SpikeStatistics
from spikingbrain_hal.ops import spike_encode
from spikingbrain_hal.testing import python_backend

pytest.importorskip("transformers")

from checkpoints import CONFIG, GROUP, W8ASPIKE, random_tensors, write
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast
from variants import load

LETTERS = (string.ascii_letters + string.digits)[: CONFIG["vocab_size"] - 2]


@pytest.fixture(scope="module", params=["plain", "w8aspike"])
def checkpoint(request, tmp_path_factory):
    torch.manual_seed(3)
    config, group = (W8ASPIKE, GROUP) if request.param == "w8aspike" else (CONFIG, None)
    folder = write(tmp_path_factory.mktemp("cli") / request.param, config, random_tensors(config, group))
    vocabulary = {letter: i for i, letter in enumerate(["?", ".", *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?", eos_token=".").save_pretrained(folder)
    return folder


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200"})


def test_generate_streams_what_the_model_continues_with(checkpoint):
    prompt = "abcdefgh"
    result = run("generate", checkpoint, "--prompt", prompt, "--max-new-tokens", 12, "--dtype", "float32")
    assert result.exit_code == 0, result.output
    model = load(checkpoint, torch.float32).eval()
    tokens = torch.tensor([[2 + LETTERS.index(letter) for letter in prompt]])
    with torch.no_grad():
        for _ in range(12):
            tokens = torch.cat((tokens, model(tokens, use_cache=False).logits[:, -1:].argmax(-1)), 1)
            if tokens[0, -1] == CONFIG["eos_token_id"]:
                break
    text = "".join((["", "", *LETTERS])[t] for t in tokens[0, len(prompt) :])
    assert result.stdout.replace(" ", "").strip() == text
    assert re.search(r"read 8 tokens in [\d.]+ s", result.stderr)
    assert re.search(r"state: [\d,]+ bytes after \d+ tokens", result.stderr)


def test_generate_repeats_what_a_seed_gives(checkpoint):
    sample = ("--prompt", "abc", "--temperature", 1.0, "--seed", 7, "--max-new-tokens", 20)
    first, second = (run("generate", checkpoint, *sample) for _ in range(2))
    assert first.exit_code == 0
    assert first.stdout == second.stdout != ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prompt", ""), "prompt has no tokens"),
        (("--prompt", "a", "--dtype", "int8"), "dtype is 'int8', expected auto or one of float32"),
        (("--prompt", "a", "--backend", "nowhere"), "nowhere"),
        (("--prompt", "a", "--device", "cuda:7"), "device is 'cuda:7', which is not there"),
        (("--prompt", "a", "--device", "meta"), "device is 'meta', which is not there"),
        (("--prompt", "a", "--device", "abacus"), "device is 'abacus', which is not there"),
        (("--prompt", "a", "--temperature", "nan"), "Invalid value for '--"),
        (("--prompt", "a", "--temperature", "inf"), "inf is not finite"),
        (("--prompt", "a", "--top-p", "nan"), "Invalid value for '--"),
        (("--prompt", "a", "--seed", 1 << 70), "--seed"),
        (("--prompt", "a", "--seed", -1), "--seed"),
    ],
)
def test_generate_refuses_in_one_line(checkpoint, options, message):
    result = run("generate", checkpoint, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["generate", "inspect", "spikes"])
def test_a_folder_that_is_not_there_is_named(command, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text"
    text.write_text("a")
    options = {"generate": ("--prompt", "a"), "inspect": (), "spikes": ("--text", text, "--out", tmp_path)}
    for name, message in (
        (tmp_path / "nowhere", "is no folder, and no name that the hub could have"),
        ("./nowhere", "is no folder, and no name that the hub could have"),
        ("nobody/nothing", "nobody/nothing is no folder, and cannot be had from the hub: "),
        (text, "is a file, expected the folder of a checkpoint"),
    ):
        result = run(command, name, *options[command])
        assert result.exit_code == 2, result.output
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_name_on_the_hub_is_as_good_as_a_folder(checkpoint, tmp_path, monkeypatch):
    """In the hub's cache every file is a link to another folder."""
    repository = tmp_path / "models--some--brain"
    snapshot = repository / "snapshots" / "1a2b3c"
    for folder in (repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True)
    for file in checkpoint.iterdir():
        (repository / "blobs" / file.name).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    (repository / "refs" / "main").write_text("1a2b3c")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    result = run("inspect", "some/brain")
    assert result.exit_code == 0, result.output
    assert result.stdout.replace("brain", checkpoint.name) == run("inspect", checkpoint).stdout
    result = run("generate", "some/brain", "--prompt", "a", "--max-new-tokens", 2)
    assert result.exit_code == 0, result.output


def test_generate_says_that_a_tokenizer_is_missing(tmp_path):
    folder = write(tmp_path / "bare", CONFIG, random_tensors(CONFIG))
    result = run("generate", folder, "--prompt", "a")
    assert result.exit_code == 2
    assert "has no tokenizer" in result.stderr


def test_inspect_names_the_variant_its_state_and_who_runs_it(checkpoint):
    result = run("inspect", checkpoint)
    assert result.exit_code == 0, result.output
    spiking = checkpoint.name == "w8aspike"
    assert f"gla_swa, {'W8ASpike' if spiking else 'plain'}" in result.stdout
    tensors = random_tensors(W8ASPIKE, GROUP) if spiking else random_tensors(CONFIG)
    numbers = sum(t.numel() for t in tensors.values())
    assert f"{numbers:,} numbers" in result.stdout
    assert re.search(r"attention +│ 2 layers with a window of 7 keys +│ cpu, version", result.stdout)
    assert ("spike_linear" in result.stdout) == spiking


def test_inspect_fails_where_a_selected_backend_has_no_kernel(checkpoint):
    register_backend(replace(python_backend("empty", {}), load=dict))
    try:
        with use_backend("cpu"):  # and back, after the command has selected another
            result = run("inspect", checkpoint, "--backend", "empty")
    finally:
        unregister_backend("empty")
    assert result.exit_code == 1
    assert "error" in result.stdout


def test_inspect_refuses_another_kind_of_model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    result = run("inspect", tmp_path)
    assert result.exit_code == 2
    assert "model_type is 'gpt2', expected 'gla_swa'" in result.output


def test_inspect_says_what_a_state_takes(checkpoint):
    """Memories are of 32 bits, whatever the weights are; keys and values of the activations' dtype."""
    stdout = run("inspect", checkpoint).stdout
    config = W8ASPIKE if checkpoint.name == "w8aspike" else CONFIG
    heads, dim = config["num_key_value_heads"], config["hidden_size"] // config["num_attention_heads"]
    memory, ring = 2 * heads * dim * dim * 4, 2 * 7 * 2 * heads * dim * 2
    told = re.search(r"([\d.]+) MiB in 2 memories of 32 bits, ([\d.]+) MiB in 2 windows of 16 bits", stdout)
    assert told, stdout
    assert [float(size) for size in told.groups()] == [round(memory / 2**20, 1), round(ring / 2**20, 1)]
    state = State.of(AutoConfig.from_pretrained(checkpoint))
    assert (state.memory_bytes, state.window_bytes, state.token_bytes) == (memory, ring, 0)


@pytest.mark.parametrize("layers", [[1, 3, 5, 7, 9, 11], [-1], "13", [1.0], [4]])
def test_inspect_refuses_layers_that_are_not_there(layers, tmp_path):
    folder = write(tmp_path / "bad", {**CONFIG, "attn_layers": layers}, random_tensors(CONFIG))
    result = run("inspect", folder)
    assert result.exit_code == 2
    assert f"attn_layers is {layers!r}, expected" in result.output


def test_spikes_are_those_of_the_activations(checkpoint, tmp_path):
    text = tmp_path / "text"
    text.write_text(LETTERS * 3)
    result = run("spikes", checkpoint, "--text", text, "--out", tmp_path / "out", "--chunk", 50, "--dtype", "float32")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "spikes.json").read_text())
    assert found["tokens"] == 3 * len(LETTERS)
    assert (tmp_path / "out" / "spikes.png").stat().st_size > 1000
    spiking = checkpoint.name == "w8aspike"
    places = {row["place"] for row in found["layers"]}
    assert ("MLP inside" in places) == (not spiking)

    model = load(checkpoint, torch.float32).eval()
    read = []
    model.model.layers[1].mlp.gate_proj.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    with torch.no_grad():
        model(torch.tensor([[2 + LETTERS.index(letter) for letter in LETTERS * 3]]))
    x = read[0]
    expected = SpikeStatistics.of(x.counts if spiking else spike_encode(x, 3.0, mean_dtype="input")[0])
    row = next(r for r in found["layers"] if (r["place"], r["layer"]) == ("MLP input", 1))
    assert row["zero_slots"] == pytest.approx(expected.zero_slots, abs=2e-3)
    assert row["spikes_per_channel"] == pytest.approx(expected.spikes_per_channel, abs=5e-3)


def test_spikes_refuses_an_empty_text(checkpoint, tmp_path):
    (tmp_path / "empty").write_text("")
    result = run("spikes", checkpoint, "--text", tmp_path / "empty", "--out", tmp_path)
    assert result.exit_code == 2
    assert "text has no tokens" in result.output


def test_spikes_says_what_it_cannot_read_or_write(checkpoint, tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "taken").write_text("")
    for text, out, message in (
        ("binary", "out", "binary is no text in UTF-8"),
        ("taken", "taken/out", "taken/out: Not a directory"),
    ):
        result = run("spikes", checkpoint, "--text", tmp_path / text, "--out", tmp_path / out)
        assert result.exit_code == 2
        assert message in result.stderr
