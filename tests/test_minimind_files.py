"""MiniMind's own checkpoints give the logits of its own code, and are saved as what they are."""

from __future__ import annotations

import importlib.util
import json
import math
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from minimind.chat import __main__ as chat
from minimind.evaluate import __main__ as evaluate
from minimind.inspect import __main__ as inspect
from minimind.model.config import ModelConfig
from minimind.model.minimind_files import config_of_shapes
from minimind.model.pretrained import load, load_system_message, load_tokenizer, read_config, save
from minimind.pretrain.__main__ import PretrainOptions, prepare
from minimind.sft import __main__ as sft
from tests.support.checkpoints import (
    read_json,
    tiny_transformers_model,
    write_json,
    write_tokenizer,
)

TOLERANCE = 1e-5
THEIRS = Path("/work/shared/minimind/model_minimind.py")
SIZES = {
    "vocab_size": 272,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
# As its code writes it under transformers 5, where `inference_rope_scaling` is false.
CONFIG = {
    "architectures": ["MiniMindForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "model_minimind.MiniMindForCausalLM"},
    "bos_token_id": 1,
    "dropout": 0.0,
    "dtype": "float32",
    "eos_token_id": 2,
    "flash_attn": True,
    "head_dim": 8,
    "hidden_act": "silu",
    "inference_rope_scaling": False,
    "model_type": "minimind",
    "moe_intermediate_size": 48,
    "norm_topk_prob": True,
    "num_experts": 4,
    "num_experts_per_tok": 1,
    "rms_norm_eps": 1e-6,
    "rope_parameters": None,
    "rope_theta": 1e6,
    "router_aux_loss_coef": 0.0005,
    "tie_word_embeddings": True,
    "transformers_version": "5.24.0",
    "use_moe": False,
    **SIZES,
}
SCALED = {  # beside these, what it writes down and never reads
    "inference_rope_scaling": True,
    "rope_parameters": {"rope_type": "yarn", "type": "yarn", "factor": 16, "rope_theta": 1e6},
}
# Every 17th logit after tokens 1 and 63 of TOKENS, by its own code at d65ef2c with `weights`:
# test_the_golden_is_what_its_code_computes makes them again.
TOKENS = torch.arange(64)[None] * 7 % SIZES["vocab_size"]
GOLDEN = {
    False: [
        [
            -1.941086,
            -4.432196,
            -1.503003,
            3.264271,
            4.039541,
            -0.125298,
            -4.136906,
            -3.089332,
            1.736306,
            4.438548,
            1.712718,
            -3.107661,
            -4.127562,
            -0.099708,
            4.050083,
            3.246871,
        ],
        [
            0.10631,
            5.60208,
            4.24685,
            -2.302017,
            -6.035659,
            -2.388061,
            4.17999,
            5.636169,
            0.19966,
            -5.48102,
            -4.45875,
            2.016298,
            6.025537,
            2.665914,
            -3.953959,
            -5.738383,
        ],
    ],
    True: [
        [
            -1.937535,
            -4.436877,
            -1.510192,
            3.263366,
            4.046027,
            -0.119354,
            -4.138773,
            -3.096726,
            1.732427,
            4.442928,
            1.720001,
            -3.106382,
            -4.133851,
            -0.105874,
            4.05158,
            3.254201,
        ],
        [
            0.120052,
            5.561377,
            4.201479,
            -2.29657,
            -5.986054,
            -2.354963,
            4.156104,
            5.58451,
            0.183403,
            -5.441995,
            -4.412167,
            2.01347,
            5.976758,
            2.630838,
            -3.932435,
            -5.686581,
        ],
    ],
}


def weights() -> dict[str, torch.Tensor]:
    """A tied model's, from sines: the same on any machine."""
    width, inner, heads, kv_heads = 32, 48, 4 * 8, 2 * 8
    layer = {
        "input_layernorm": [width],
        "mlp.down_proj": [width, inner],
        "mlp.gate_proj": [inner, width],
        "mlp.up_proj": [inner, width],
        "post_attention_layernorm": [width],
        "self_attn.k_norm": [8],
        "self_attn.k_proj": [kv_heads, width],
        "self_attn.o_proj": [width, heads],
        "self_attn.q_norm": [8],
        "self_attn.q_proj": [heads, width],
        "self_attn.v_proj": [kv_heads, width],
    }
    shapes = {"model.embed_tokens": [272, width], "model.norm": [width]}
    shapes |= {f"model.layers.{i}.{name}": layer[name] for i in (0, 1) for name in layer}
    found = {}
    for number, name in enumerate(sorted(shapes)):
        steps = torch.arange(math.prod(shapes[name]), dtype=torch.float64)
        wave = torch.sin(steps * (1.7 + 0.31 * number) + number).view(shapes[name])
        found[f"{name}.weight"] = (0.3 * wave + ("norm" in name)).float()
    return found


def logits_of(model: torch.nn.Module, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        output = model(tokens)
    return getattr(output, "logits", output)


def assert_golden(model: torch.nn.Module, scaled: bool = False) -> None:
    found = logits_of(model)[0, [1, 63], ::17]
    torch.testing.assert_close(found, torch.tensor(GOLDEN[scaled]), atol=TOLERANCE, rtol=0)


def write_export(directory: Path, **fields: object) -> Path:
    """A folder as MiniMind exports it."""
    write_tokenizer(directory)
    write_json(directory / "config.json", CONFIG | fields)
    save_file(weights(), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def write_state_dict(path: Path, **changes: torch.Tensor) -> Path:
    """A .pth as MiniMind saves it: the tied head is there too."""
    stored = weights()
    torch.save(stored | {"lm_head.weight": stored["model.embed_tokens.weight"]} | changes, path)
    return path


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture(scope="module")
def theirs() -> ModuleType:
    if not THEIRS.is_file():
        pytest.skip(f"no {THEIRS}, MiniMind's own code: only the golden numbers hold this here")
    spec = importlib.util.spec_from_file_location("model_minimind", THEIRS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def their_model(theirs: ModuleType, **fields: object) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers 5, of rope_scaling
        return theirs.MiniMindForCausalLM(theirs.MiniMindConfig(**fields)).eval()


# Its own code


@pytest.mark.parametrize("scaled", [False, True])
def test_the_golden_is_what_its_code_computes(scaled: bool, theirs: ModuleType) -> None:
    model = their_model(theirs, **SIZES, inference_rope_scaling=scaled)
    model.load_state_dict({"lm_head.weight": weights()["model.embed_tokens.weight"], **weights()})
    assert_golden(model, scaled)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tie_word_embeddings": False, "head_dim": 10, "rms_norm_eps": 1e-3},
        {"num_attention_heads": 6, "num_key_value_heads": 6, "hidden_size": 48, "rope_theta": 1e4},
        {"inference_rope_scaling": True, "rope_theta": 5e3, "head_dim": 64},
        {"inference_rope_scaling": True, "max_position_embeddings": 2048},
        {"num_key_value_heads": None, "dropout": 0.5, "flash_attn": False},
    ],
    ids=str,
)
def test_a_random_model_gives_its_codes_logits_exported_and_as_a_state_dict(
    fields: dict, theirs: ModuleType, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = their_model(theirs, **SIZES | fields)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.15)
    tokens = torch.randint(SIZES["vocab_size"], (2, 300))
    expected = logits_of(model, tokens)
    write_tokenizer(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path)
    found, _ = load(tmp_path)
    torch.testing.assert_close(logits_of(found, tokens), expected, atol=TOLERANCE, rtol=0)

    torch.save(model.state_dict(), tmp_path / "full_sft_32.pth")
    with pytest.warns(UserWarning, match=r"rms_norm_eps \S+ \(config\.json\)"):
        found, _ = load(tmp_path / "full_sft_32.pth")
    torch.testing.assert_close(logits_of(found, tokens), expected, atol=TOLERANCE, rtol=0)


def test_what_its_config_leaves_out_is_what_its_code_takes(theirs: ModuleType) -> None:
    config = their_model(theirs, num_hidden_layers=SIZES["num_hidden_layers"]).config
    names = [*SIZES, "head_dim", "rms_norm_eps", "rope_theta", "tie_word_embeddings"]
    left_out = {"model_type": "minimind", "num_hidden_layers": SIZES["num_hidden_layers"]}
    found = ModelConfig.from_hf(left_out)
    assert {name: getattr(found, name) for name in names} == {
        name: getattr(config, name) for name in names
    }


# Its exports


def test_left_out_keys_take_the_published_defaults() -> None:
    assert ModelConfig.from_hf({"model_type": "minimind"}) == ModelConfig(
        model_type="qwen3",
        vocab_size=6400,
        hidden_size=768,
        intermediate_size=2432,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=96,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        tie_word_embeddings=True,
        qk_norm=True,
    )
    assert ModelConfig.from_hf({"model_type": "minimind", "n_routed_experts": 4}) == ModelConfig(
        model_type="llama",
        vocab_size=6400,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=32768,
        rms_norm_eps=1e-5,
        rope_theta=1e6,
        tie_word_embeddings=True,
    )


@pytest.mark.parametrize("scaled", [False, True])
def test_its_export_is_qwen3_under_another_name_and_is_saved_as_that(scaled, tmp_path) -> None:
    model, tokenizer = load(write_export(tmp_path / "base", **(SCALED if scaled else {})))
    assert_golden(model, scaled)

    save(tmp_path / "saved", model, tokenizer)
    config = read_json(tmp_path / "saved/config.json")
    assert (config["model_type"], config["architectures"]) == ("qwen3", ["Qwen3ForCausalLM"])
    assert_golden(AutoModelForCausalLM.from_pretrained(tmp_path / "saved"), scaled)
    assert torch.equal(logits_of(load(tmp_path / "saved")[0]), logits_of(model))


def test_its_export_by_transformers_4_is_a_pickle_of_half_precision(tmp_path) -> None:
    folder = write_export(tmp_path, rope_scaling=None, torch_dtype="float16")
    (folder / "model.safetensors").unlink()
    torch.save({k: v.half() for k, v in weights().items()}, folder / "pytorch_model.bin")
    model, _ = load(folder)
    assert torch.equal(model.head_weight, weights()["model.embed_tokens.weight"].half().float())


def test_its_export_as_qwen3_is_read_as_any_qwen3(tmp_path) -> None:
    head = {"lm_head.weight": weights()["model.embed_tokens.weight"]}
    config = Qwen3Config(
        **SIZES, head_dim=8, rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=True
    )
    model = Qwen3ForCausalLM(config)
    model.load_state_dict(weights() | head)
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    assert_golden(load(tmp_path)[0])


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"use_moe": True}, "use_moe is true: a mixture of experts; use a dense model"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only silu"),
        ({"hidden_size": "32"}, "hidden_size is '32'; use an integer from 1"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0; use an integer from 1"),
        ({"architectures": ["LlamaForCausalLM"]}, "architectures is .*LlamaForCausalLM"),
        ({"sliding_windows": [8]}, "sliding_windows is .8., which Qwen3ForCausalLM doesn't have"),
        (
            {"n_routed_experts": 4, "inference_rope_scaling": True},
            "inference_rope_scaling is true, which MiniMind2's versions compute in several ways; s",
        ),
    ],
)
def test_what_is_not_a_dense_minimind_is_refused_by_name(fields, error, tmp_path) -> None:
    with pytest.raises(ValueError, match=rf"config\.json: {error}"):
        load(write_export(tmp_path, **fields))


# Its state dicts

DEFAULTS = (
    r"full_sft_32\.pth: what the shapes of a state dict don't tell: rope_theta 1e\+06 "
    r"\(MiniMind-3's default\), rms_norm_eps 1e-06 \(MiniMind-3's default\), "
    r"max_position_embeddings 32768 \(MiniMind-3's default\); a config\.json beside it decides$"
)


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod."])
def test_a_state_dict_loads_with_the_folder_of_a_tokenizer(prefix, tokenizer, tmp_path) -> None:
    path = tmp_path / "full_sft_32.pth"
    stored = torch.load(write_state_dict(path), weights_only=True)
    torch.save({prefix + name: value for name, value in stored.items()}, path)
    with pytest.warns(UserWarning, match=DEFAULTS) as told:
        model, found = load(path, tokenizer=tokenizer)
    assert len(told) == 1
    assert found.vocab_size == 261
    assert_golden(model)
    assert model.config.tie_word_embeddings
    assert model.config.max_position_embeddings == 32768
    with pytest.warns(UserWarning, match=DEFAULTS):
        assert read_config(path) == model.config
    assert load_system_message(path) is None

    save(tmp_path / "saved", model, found)
    assert_golden(AutoModelForCausalLM.from_pretrained(tmp_path / "saved"))


def test_a_config_beside_a_state_dict_decides_what_its_shapes_do_not_tell(tmp_path) -> None:
    path = write_state_dict(write_export(tmp_path, rms_norm_eps=1e-3, **SCALED) / "base.pth")
    said = (
        r"rope_theta 1e\+06 \(config\.json\), rms_norm_eps 0\.001 \(config\.json\), "
        r"max_position_embeddings 4096 \(config\.json\), rope_scaling yarn \(config\.json\); a conf"
    )
    with pytest.warns(UserWarning, match=said):
        model, _ = load(path)
    assert model.config == load(tmp_path)[0].config

    write_json(tmp_path / "config.json", {"rope_parameters": {"rope_theta": 5e5}})
    with pytest.warns(
        UserWarning, match=r"rope_theta 500000 \(config\.json\), rms_norm_eps 1e-06 \(M"
    ):
        model, _ = load(path)
    assert (model.config.rope_theta, model.config.rms_norm_eps) == (5e5, 1e-6)

    write_export(tmp_path, intermediate_size=64)
    with (
        pytest.warns(UserWarning, match="what the shapes of a state dict don't tell"),
        pytest.raises(
            ValueError, match=r"base\.pth: 6 of its weights don't fit its config\.json; u"
        ),
    ):
        load(path)
    write_export(tmp_path, use_moe=True)
    with pytest.raises(ValueError, match=r"base\.pth: use_moe is true: a mixture of experts; use"):
        load(path)
    assert read_config(path) is None


def test_a_head_of_its_own_is_kept(tokenizer, tmp_path) -> None:
    head = weights()["model.embed_tokens.weight"] * 2
    path = write_state_dict(tmp_path / "full_sft_32.pth", **{"lm_head.weight": head})
    with pytest.warns(UserWarning, match=DEFAULTS):
        model, _ = load(path, tokenizer=tokenizer)
    assert not model.config.tie_word_embeddings
    assert torch.equal(model.head_weight, head)


@pytest.mark.parametrize("as_folder", [True, False], ids=["folder", "state dict"])
def test_minimind2_is_llama_and_is_saved_as_that(as_folder, tmp_path) -> None:
    rope = {"rope_type": "default", "rope_theta": 1e6}
    sizes = SIZES | {"hidden_size": 64, "num_attention_heads": 8, "head_dim": 8}
    llama = tiny_transformers_model(
        "llama", **sizes, rms_norm_eps=1e-5, rope_parameters=rope, tie_word_embeddings=True
    )
    write_tokenizer(tmp_path)
    if as_folder:
        of_the_second = ("head_dim", "num_experts", "moe_intermediate_size", "tie_word_embeddings")
        config = {key: CONFIG[key] for key in CONFIG if key not in of_the_second}
        config |= {"n_routed_experts": 4, "n_shared_experts": 1, "scoring_func": "softmax"}
        config |= {"aux_loss_alpha": 0.1, "seq_aux": True, "rms_norm_eps": 1e-5, "hidden_size": 64}
        write_json(tmp_path / "config.json", config | {"num_attention_heads": 8})
        torch.save(llama.state_dict(), tmp_path / "pytorch_model.bin")
        model, tokenizer = load(tmp_path)
    else:
        torch.save(llama.state_dict(), tmp_path / "full_sft_64.pth")
        said = (
            r"rms_norm_eps 1e-05 \(MiniMind2's default\), num_attention_heads 8 \(MiniMind2's def"
        )
        with pytest.warns(UserWarning, match=said):
            model, tokenizer = load(tmp_path / "full_sft_64.pth")
    torch.testing.assert_close(logits_of(model), logits_of(llama), atol=TOLERANCE, rtol=0)
    save(tmp_path / "saved", model, tokenizer)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert type(again).__name__ == "LlamaForCausalLM"
    torch.testing.assert_close(logits_of(again), logits_of(llama), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model.embed_tokens.weight": None}, r"has no model\.embed_tokens\.weight, but model\.l"),
        (
            {"model.layers.0.self_attn.k_proj.weight": None},
            r"has no model\.layers\.0\.self_attn\.k_proj\.weight, but model\.",
        ),
        ({"model.embed_tokens.weight": [5]}, r"model\.embed_tokens\.weight is \[5\]; use the wei"),
        ({"model.layers.0.mlp.gate_proj.weight": [0, 32]}, r"gate_proj\.weight is \[0, 32\]; use"),
        (
            {"model.layers.1.mlp.experts.0.up_proj.weight": [2, 2]},
            r"mlp\.experts\.0\.up_proj\.weight is there: a mixture of experts; use a dense model",
        ),
        ({"model.layers.1.mlp.gate.weight": [4, 32]}, "gate.weight is there: a mixture of exper"),
        (
            {"model.layers.0.self_attn.q_norm.weight": [7]},
            "32 rows of queries and 16 of keys aren't whole heads of 7; put a config.json with num",
        ),
        (
            {
                "model.layers.0.self_attn.q_norm.weight": None,
                "model.layers.0.self_attn.q_proj.weight": [30, 32],
            },
            "30 rows of queries and 16 of keys aren't whole heads of 3; put a config.json with num",
        ),
    ],
)
def test_shapes_that_are_no_dense_models_are_refused(change, error: str) -> None:
    shapes = {name: list(value.shape) for name, value in weights().items()} | change
    shapes = {name: shape for name, shape in shapes.items() if shape is not None}
    with pytest.raises(ValueError, match=error):
        config_of_shapes(shapes, {})


def test_layers_of_a_state_dict_that_differ_from_its_first_are_listed(tokenizer, tmp_path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    path = write_state_dict(tmp_path / "full_sft_32.pth", **{name: torch.ones(3, 32)})
    with (
        pytest.warns(UserWarning, match=DEFAULTS),
        pytest.raises(
            ValueError, match="don't fit its first layer; use the weights of a whole"
        ) as e,
    ):
        load(path, tokenizer=tokenizer)
    assert f"{name} is [3, 32], not [48, 32]" in str(e.value)


# Its tokenizer


def test_a_state_dict_needs_a_tokenizer_and_a_folder_has_its_own(tokenizer, tmp_path) -> None:
    path = write_state_dict(tmp_path / "full_sft_32.pth")
    missing = r"full_sft_32\.pth: no tokenizer beside it; give its folder with --tokenizer FOLDER"
    with pytest.raises(FileNotFoundError, match=missing):
        load_tokenizer(path)
    with (
        pytest.warns(UserWarning, match=DEFAULTS),
        pytest.raises(FileNotFoundError, match=missing),
    ):
        load(path)
    folder = write_export(tmp_path / "export")
    for read in (load, load_tokenizer):
        with pytest.raises(ValueError, match=r"export: has its own tokenizer; leave out --tokeni"):
            read(folder, tokenizer=tokenizer)
    (tokenizer / "tokenizer.json").rename(tmp_path / "tokenizer.json")  # beside the file
    assert load_tokenizer(path).vocab_size == 261


def test_the_commands_take_a_state_dict_and_its_tokenizer(
    tokenizer, tmp_path, monkeypatch, capfd
) -> None:
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sft, "ANSWER_TOKENS", 4)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # put back afterwards
    path = write_state_dict(tmp_path / "full_sft_32.pth")
    row = {"messages": [{"role": r, "content": "hi"} for r in ("user", "assistant")]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    base = ["--model", str(path), "--tokenizer", str(tokenizer)]
    few = ["--max-new-tokens", "4", "--temperature", "0"]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        once = ["--out", "run", "--max-steps", "1", "--val-fraction", "0"]
        assert inspect.main(["rows.jsonl", *base]) == 0
        inspected = capfd.readouterr()
        assert sft.main(["rows.jsonl", *base, *once]) == 0
        tuned = capfd.readouterr()
        assert chat.main([*base, "--prompt", "hi", *few]) == 0
        chatted = capfd.readouterr()
        assert evaluate.main(["rows.jsonl", *base, "--model", "run", "--out", "figures", *few]) == 0
        evaluated = capfd.readouterr()
        assert inspect.main(["rows.jsonl", "--model", "run", *base[2:]]) == 2
        with pytest.raises(SystemExit, match="2"):
            evaluate.main(["rows.jsonl", "--model", "run", *base[2:]])
        refused = capfd.readouterr()
    for output in (inspected, tuned, chatted, evaluated):
        assert output.err.count("note: ") >= 1
        assert "full_sft_32.pth: what the shapes of a state dict don't tell: rope_th" in output.err
    hashes = [line for line in tuned.out.splitlines() if line.startswith("hash: ")]
    assert hashes[0] in inspected.out.splitlines()
    assert read_json(tmp_path / "run/config.json")["model_type"] == "qwen3"
    assert set(load_file(tmp_path / "run/model.safetensors")) == set(weights())
    assert "run: has its own tokenizer; leave out --tokenizer" in refused.err
    assert "--tokenizer is for a .pth, and no --model is" in refused.err


def test_pretraining_goes_on_from_a_state_dict(tokenizer, tmp_path) -> None:
    path = write_state_dict(tmp_path / "full_sft_32.pth")
    options = PretrainOptions(
        files=("a.txt",), out=tmp_path / "run", model=str(path), tokenizer=str(tokenizer)
    )
    with pytest.warns(UserWarning, match=DEFAULTS):
        found, model = prepare(options, torch.device("cpu"))
    assert found.vocab_size == 261
    assert_golden(model)
