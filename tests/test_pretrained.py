"""Reading and writing models: every error by its message, files, rules."""

import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from transformer.bert import BERT, BERTConfig, MaskedLM
from transformer.encoder_decoder import Transformer, TransformerConfig
from transformer.gpt import GPT, GPTConfig
from transformer.positions import sinusoidal
from transformer.pretrained import (
    FAMILIES,
    LLAMA,
    PALM,
    Rule,
    Weights,
    Whisper,
    WhisperConfig,
    from_pretrained,
    read_rules,
    save_pretrained,
    sines_first,
    spell_out,
    to_ours,
    to_theirs,
    transcribe,
)
from transformer.vision import ViT, ViTConfig

SIZE = {"vocab_size": 11, "max_len": 8, "d_model": 8, "n_heads": 2, "n_layers": 2}
NORM = "transformer.h.0.ln_1.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A GPT-2 with random weights."""
    torch.manual_seed(0)
    save_pretrained(GPT(GPTConfig(**SIZE)), tmp_path / "gpt2")
    return tmp_path / "gpt2"


def edit(folder: Path, **changes) -> None:
    """Change fields of config.json; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    kept = {name: value for name, value in config.items() if value is not None}
    path.write_text(json.dumps(kept))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def put(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors")


# ---- rules -----------------------------------------------------------------------


def test_a_table_is_read_line_by_line() -> None:
    rules = read_rules(
        """
        a  b
in.{i}.    out.{i}.
    x|y.*  z.*  transposed
    p      q    times r.s
.          .
    m      n    1 D -> D
    k      l    or zeros
        """,
        theirs="pre.",
    )
    assert rules == (
        Rule(("a",), "pre.b"),
        Rule(("in.{i}.x.*", "in.{i}.y.*"), "pre.out.{i}.z.*", "transposed"),
        Rule(("in.{i}.p",), "pre.out.{i}.q", "times", "pre.out.{i}.r.s"),
        Rule(("m",), "pre.n", "axes", "1 D -> D"),
        Rule(("k",), "pre.l", "or", "zeros"),
    )


def test_rules_are_written_out_for_what_the_model_has() -> None:
    rules = (Rule(("b.{i}.x.*", "b.{i}.y.*"), "c.{i}.*"), Rule(("head.*",), "h.*"))
    names = ["b.0.x.weight", "b.0.y.weight", "b.1.x.weight", "b.1.x.bias"]
    found = spell_out(rules, names)
    assert [rule.theirs for rule in found] == ["c.0.weight", "c.1.weight", "c.1.bias"]
    assert found[0].ours == ("b.0.x.weight", "b.0.y.weight")


def test_every_rule_and_its_way_back(exact: None) -> None:
    config = SimpleNamespace(patch_size=2)
    cases = {
        Rule(("a", "b"), "t", "transposed"): (torch.randn(3, 6), [2, 4]),
        Rule(("a",), "t", "axes", "D C p q -> D (C p q)"): (
            torch.randn(5, 3, 2, 2),
            [5],
        ),
        Rule(("a",), "t", "axes", "1 1 D -> D"): (torch.randn(1, 1, 7), [7]),
        Rule(("a",), "t"): (torch.randn(4, 3), [4]),
    }
    for rule, (tensor, rows) in cases.items():
        ours = to_ours(rule, tensor, rows)
        assert [len(ours[name]) for name in rule.ours] == rows
        assert torch.equal(to_theirs(rule, ours, config), tensor), rule
    turned = to_ours(Rule(("a",), "t", "transposed"), tensor, [3])["a"]
    assert torch.equal(turned, tensor.T)


def test_factors_multiply_rows(exact: None) -> None:
    weight, bias, factors = torch.randn(3, 4), torch.randn(3), torch.randn(3)
    rule = Rule(("a",), "t", "times", "f")
    x = torch.randn(5, 4)
    new_weight = to_ours(rule, weight, [3], factors)["a"]
    new_bias = to_ours(rule, bias, [3], factors)["a"]
    expected = factors * (x @ weight.T + bias)
    torch.testing.assert_close(x @ new_weight.T + new_bias, expected)


def test_sines_come_first() -> None:
    table = sines_first(9, 6)
    interleaved = sinusoidal(9, 6)
    assert torch.equal(table[:, :3], interleaved[:, 0::2])
    assert torch.equal(table[:, 3:], interleaved[:, 1::2])
    with pytest.raises(ValueError, match="d_model must be even"):
        sines_first(9, 5)


# ---- round trips -------------------------------------------------------------------


def of_every_kind() -> dict[str, torch.nn.Module]:
    two = {"vocab_size": 11, "d_model": 8, "n_heads": 2, "n_layers": 2}
    bert = BERTConfig(**SIZE)
    image = {"image_size": 8, "patch_size": 4, "d_model": 8, "n_heads": 2}
    return {
        "GPT2LMHeadModel": GPT(GPTConfig(**SIZE, d_ff=32)),
        "LlamaForCausalLM": GPT(GPTConfig(**SIZE, **LLAMA, n_kv_heads=1, d_ff=12)),
        "BertModel": BERT(bert),
        "BertForMaskedLM": MaskedLM(BERT(bert)),
        "MarianMTModel": Transformer(TransformerConfig(**two, max_len=8)),
        "ViTModel": ViT(ViTConfig(**image, n_layers=1)),
        "ViTForImageClassification": ViT(ViTConfig(**image, n_layers=1, n_classes=3)),
        "WhisperForConditionalGeneration": Whisper(
            WhisperConfig(**two, max_source=4, dropout=0.5)
        ),
    }


@pytest.mark.parametrize("name", of_every_kind())
def test_the_family_is_found_and_read_back(name: str, tmp_path: Path) -> None:
    model = of_every_kind()[name]
    model.save_pretrained(tmp_path)  # the method of chapter 12
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [name]
    assert config["model_type"] == FAMILIES[name].model_type
    again = type(model).from_pretrained(tmp_path)
    for key, weight in model.state_dict().items():
        if isinstance(model, Whisper) and key.endswith("key.bias"):
            weight = torch.zeros_like(weight)  # it moves no attention, and is left out
        assert torch.equal(again.state_dict()[key], weight), key
    if model.tied:
        table, copy = (again.get_parameter(name) for name in model.tied)
        assert table is copy


def test_another_class_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="folder must hold a BERT, got a GPT"):
        BERT.from_pretrained(folder)


def test_the_type_of_numbers(folder: Path) -> None:
    save_pretrained(from_pretrained(folder).half(), folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    assert tensors_of(folder)[NORM].dtype == torch.float16
    assert next(from_pretrained(folder).parameters()).dtype == torch.float32
    double = from_pretrained(folder, torch.float64)
    assert {weight.dtype for weight in double.parameters()} == {torch.float64}
    with pytest.raises(ValueError, match=r"dtype must be a floating.* torch\.int64"):
        from_pretrained(folder, torch.int64)


def test_the_weights_are_copies(folder: Path) -> None:
    """Training one must not reach the file, nor another model read from it."""
    before = (folder / "model.safetensors").read_bytes()
    first, second = from_pretrained(folder), from_pretrained(folder)
    with torch.no_grad():
        first.embedding.weight.zero_()
    assert second.embedding.weight.abs().sum() > 0
    assert (folder / "model.safetensors").read_bytes() == before


def test_rotary_is_computed(tmp_path: Path) -> None:
    model = GPT(GPTConfig(**SIZE, **LLAMA, d_ff=12, rotary_base=77.0)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    save_pretrained(model, tmp_path)
    ids = torch.arange(8)[None]
    torch.testing.assert_close(from_pretrained(tmp_path)(ids), model(ids))


def test_extra_fields_and_no_leftovers(folder: Path, tmp_path: Path) -> None:
    model = from_pretrained(folder)
    save_pretrained(model, tmp_path / "new", eos_token_id=2)
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["eos_token_id"] == 2 and config["bos_token_id"] is None
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_pretrained(model, tmp_path / "new", eos_token_id=torch.ones(1))
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == ["config.json", "model.safetensors"]


def test_a_failed_write_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformer.pretrained as module

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = from_pretrained(folder)

    def half(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(module, "save_file", half)
    with pytest.raises(OSError, match="disk full"):
        save_pretrained(model, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# ---- what can't be written ---------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"positions": "sinusoidal"}, r"positions must be learned, got sinusoidal"),
        ({"scale_embeddings": True}, r"scale_embeddings must be False, got True"),
        (PALM, r"order must be pre, got parallel"),
        ({"activation": "swiglu"}, r"activation must be one without a gate"),
        ({"n_kv_heads": 1}, r"GPT2LMHeadModel: n_kv_heads must be 2, got 1"),
        ({"positions": "rotary"}, r"LlamaForCausalLM: .*norm must be rms, got layer"),
    ],
)
def test_a_model_that_no_config_can_say(changes: dict, words: str, tmp_path: Path):
    with pytest.raises(ValueError, match=f"fits no architecture.*{words}"):
        save_pretrained(GPT(GPTConfig(**SIZE | changes)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_architecture_of_another_class(folder: Path, tmp_path: Path) -> None:
    model = from_pretrained(folder)
    with pytest.raises(
        ValueError, match=r"one of \['GPT2LM.* for a GPT, got 'BertModel'"
    ):
        save_pretrained(model, tmp_path, "BertModel")
    with pytest.raises(ValueError, match=r"LlamaForCausalLM: .*norm must be rms"):
        save_pretrained(model, tmp_path, "LlamaForCausalLM")
    with pytest.raises(ValueError, match=r"fits no architecture\. Linear"):
        save_pretrained(torch.nn.Linear(2, 2), tmp_path)
    odd = ViT(
        ViTConfig(image_size=8, patch_size=4, d_model=8, n_heads=2, n_layers=1, d_ff=12)
    )
    with pytest.raises(ValueError, match="d_ff must be a multiple of d_model, got 12"):
        save_pretrained(odd, tmp_path, "Dinov2Model")


# ---- what can't be read ------------------------------------------------------------


def refuses(folder: Path, words: str, error: type = ValueError) -> None:
    with pytest.raises(error, match=words):
        from_pretrained(folder)


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    refuses(tmp_path / "nowhere" / "at" / "all", "no folder '.*all'", FileNotFoundError)
    refuses(folder / "config.json", "no folder '.*config.json'", FileNotFoundError)
    (folder / "config.json").rename(folder / "away")
    refuses(folder, r"config\.json is missing", FileNotFoundError)
    (folder / "away").rename(folder / "config.json")
    (folder / "model.safetensors").unlink()
    refuses(folder, r"model\.safetensors is missing", FileNotFoundError)


@pytest.mark.parametrize("size", [0, 4, 60, 2000, -1])
def test_a_file_cut_short(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    refuses(folder, r"gpt2/model\.safetensors is not a whole safetensors file")


def test_a_config_that_is_no_object(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "gp')
    refuses(folder, r"config\.json is not JSON")
    (folder / "config.json").write_text("[1]")
    refuses(folder, r"config\.json must hold an object, got a list")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "t5"}, "'GPT2LMHeadModel' of model_type 't5' is not known"),
        ({"architectures": ["GPT2Model"]}, "architecture 'GPT2Model'.* is not known"),
        ({"architectures": None, "model_type": "x"}, "architecture None"),
        ({"n_embd": None}, "the field n_embd is missing"),
        ({"n_embd": "eight"}, r"config\.json: "),
        ({"n_head": 3}, "d_model must be divisible by n_heads, got 8 and 3"),
        (
            {"activation_function": "tanh"},
            "activation_function must be one of .*'tanh'",
        ),
        ({"scale_attn_weights": False}, "scale_attn_weights must be True, got False"),
    ],
)
def test_a_config_that_we_have_not(folder: Path, changes: dict, words: str) -> None:
    edit(folder, **changes)
    refuses(folder, words)


def test_without_an_architecture_the_model_type_decides(folder: Path) -> None:
    edit(folder, architectures=None)
    assert isinstance(from_pretrained(folder), GPT)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention_bias": True}, "attention_bias must be False, got True"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
        ({"head_dim": 8}, "head_dim must be .* = 8 / 2, got 8"),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5.0}},
            "rotary scaling is not supported, got .*llama3",
        ),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}},
            "rotary scaling is not supported, got .*linear",
        ),
    ],
)
def test_llamas_that_we_have_not(changes: dict, words: str, tmp_path: Path) -> None:
    save_pretrained(GPT(GPTConfig(**SIZE, **LLAMA, d_ff=12)), tmp_path)
    edit(tmp_path, **changes)
    refuses(tmp_path, words)


def test_two_stacks_must_be_alike(tmp_path: Path) -> None:
    model = of_every_kind()["MarianMTModel"]
    save_pretrained(model, tmp_path)
    edit(tmp_path, decoder_attention_heads=4)
    refuses(tmp_path, "decoder_attention_heads must be 2, got 4")
    edit(tmp_path, decoder_attention_heads=2, share_encoder_decoder_embeddings=False)
    refuses(tmp_path, "share_encoder_decoder_embeddings must be True, got False")


def test_pictures_must_be_square(tmp_path: Path) -> None:
    model = of_every_kind()["ViTModel"]
    save_pretrained(model, tmp_path)
    edit(tmp_path, image_size=[8, 8])
    assert from_pretrained(tmp_path).config.image_size == 8
    edit(tmp_path, image_size=[8, 12])
    refuses(tmp_path, r"image_size must be square, got \[8, 12\]")


def test_missing_and_unexpected_tensors(folder: Path) -> None:
    tensors = tensors_of(folder)
    norm = tensors.pop(NORM)
    put(folder, tensors)
    refuses(folder, rf"do not fit GPT: missing {NORM}$")
    put(folder, tensors | {NORM: norm, "score.weight": norm.clone()})
    refuses(folder, r"do not fit GPT: unexpected score\.weight$")
    put(folder, tensors | {NORM: norm, "h.0.ln_1.weight": norm.clone()})
    refuses(folder, rf"unexpected (h\.0|{NORM})")  # with and without the prefix
    put(folder, {"x": norm})
    refuses(folder, r"missing .* and 23 more; unexpected x$")


def test_a_tensor_of_another_shape(folder: Path) -> None:
    name = "transformer.h.1.mlp.c_fc.weight"
    tensors = tensors_of(folder)
    put(folder, tensors | {name: tensors[name].T.contiguous()})
    refuses(folder, rf"{name} must have shape \(8, 32\), got \(32, 8\)")


def test_numbers_that_are_not_floats(folder: Path) -> None:
    put(folder, tensors_of(folder) | {NORM: torch.ones(8, dtype=torch.int8)})
    refuses(folder, rf"{NORM} must hold floats, got I8")


def test_a_tied_table_that_differs(folder: Path) -> None:
    tensors = tensors_of(folder)
    table = tensors["transformer.wte.weight"]
    put(folder, tensors | {"lm_head.weight": table.clone()})
    from_pretrained(folder)
    put(folder, tensors | {"lm_head.weight": table + 1})
    refuses(folder, r"lm_head\.weight must equal transformer\.wte\.weight")


def test_nothing_is_read_before_all_is_checked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = tensors_of(folder)
    tensors["transformer.ln_f.bias"] = torch.ones(9)
    put(folder, tensors)

    def never(self: Weights, name: str) -> torch.Tensor:
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(Weights, "__getitem__", never)
    refuses(folder, r"ln_f\.bias must have shape \(8,\), got \(9,\)")


def test_a_pickle_is_never_opened(folder: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    from_pretrained(folder)  # safetensors beside it: fine
    (folder / "model.safetensors").unlink()
    refuses(folder, r"only as a pickle, pytorch_model\.bin, and opening one can run")
    assert not (tmp_path / "ran").exists()


def test_an_index(folder: Path) -> None:
    tensors = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    half = len(names) // 2
    where = {}
    for file, part in {"a": names[:half], "b": names[half:]}.items():
        save_file({n: tensors[n] for n in part}, folder / f"{file}.safetensors")
        where |= dict.fromkeys(part, f"{file}.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    assert torch.equal(
        from_pretrained(folder).embedding.weight, tensors["transformer.wte.weight"]
    )
    index.write_text(json.dumps({"weight_map": {names[0]: "../elsewhere.safetensors"}}))
    refuses(folder, r"gpt2/elsewhere\.safetensors is missing", FileNotFoundError)
    index.write_text("{}")
    refuses(folder, "index.json must hold a weight_map, got None")


# ---- the hub -----------------------------------------------------------------------


def test_a_name_is_looked_up_on_the_hub(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(folder)

    hub = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert isinstance(from_pretrained("someone/a-model.v2"), GPT)
    ((name, patterns),) = asked
    assert name == "someone/a-model.v2"
    assert all(pattern.endswith((".json", ".safetensors")) for pattern in patterns)


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        raise ConnectionError("no network\nand more")

    hub = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    words = "no folder 'someone/x', and the hub .*: ConnectionError: no network$"
    with pytest.raises(FileNotFoundError, match=words):
        from_pretrained("someone/x")


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match="pip install huggingface_hub"):
        from_pretrained("someone/x")


# ---- Whisper -----------------------------------------------------------------------


@pytest.fixture
def ear() -> Whisper:
    torch.manual_seed(0)
    return of_every_kind()["WhisperForConditionalGeneration"].eval()


def test_whisper_refuses(ear: Whisper) -> None:
    sound, ids = torch.randn(1, 80, 8), torch.ones(1, 3, dtype=torch.int64)
    assert ear(sound, ids).shape == (1, 3, 11)
    with pytest.raises(ValueError, match=r"features must have shape \(B, 80, frames\)"):
        ear(sound[:, :79], ids)
    with pytest.raises(ValueError, match="max_len = 4"):
        ear(torch.randn(1, 80, 10), ids)
    with pytest.raises(ValueError, match=r"ids must have shape \(B, T\)"):
        ear(sound, ids[0])
    for name in ("n_mels", "max_source", "max_len", "vocab_size"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            WhisperConfig(
                **{"vocab_size": 5, "d_model": 8, "n_heads": 2, "n_layers": 1, name: 0}
            )


def test_transcribe(ear: Whisper) -> None:
    sound = torch.randn(1, 80, 8)
    said = transcribe(ear, sound, [1, 2], stop=99, max_new_tokens=5)
    assert len(said) == 5
    ear.train()
    assert transcribe(ear, sound, [1, 2], stop=99, max_new_tokens=5) == said
    assert ear.training
    ear.eval()
    with torch.no_grad():
        for n, word in enumerate(said):  # each is the best after those before it
            logits = ear(sound, torch.tensor([[1, 2, *said[:n]]]))
            assert word == logits[0, -1].argmax()
    assert transcribe(ear, sound, [1, 2], stop=said[0]) == []
    with pytest.raises(ValueError, match="one recording and prompt at least one id"):
        transcribe(ear, torch.randn(2, 80, 8), [1], 0)
    with pytest.raises(ValueError, match="one recording and prompt at least one id"):
        transcribe(ear, sound, [], 0)
    with pytest.raises(IndexError, match="got 11"):
        transcribe(ear, sound, [11], 0)
    short = Whisper(
        WhisperConfig(vocab_size=7, max_len=4, d_model=8, n_heads=2, n_layers=1)
    )
    assert len(transcribe(short, sound, [1, 2], stop=99)) == 2  # max_len ends it


def test_palm_8b_has_its_published_size() -> None:
    """Chowdhery et al. 2022, table 1: 8.63 billion."""
    with torch.device("meta"):
        model = GPT(
            GPTConfig(
                **PALM,
                vocab_size=256_000,
                max_len=2048,
                d_model=4096,
                n_heads=16,
                n_layers=32,
            )
        )
    assert round(sum(p.numel() for p in model.parameters()) / 1e9, 2) == 8.63
