"""Every family against Hugging Face's library: small and random, then the real ones.

Nothing is downloaded here: `make weights` does that; slow tests skip without it.
"""

import json
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import transformers as hf
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from transformer.encoder_decoder import translate
from transformer.generation import generate
from transformer.gpt import GPT, GPTConfig
from transformer.pretrained import PALM, from_pretrained, save_pretrained, transcribe

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "notebooks"))
hf.logging.set_verbosity_error()
hf.logging.disable_progress_bar()

B, S, T, V, D = 3, 9, 5, 13, 8
HIDDEN = {
    "hidden_size": D,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}
TEXT = {"vocab_size": V, "bos_token_id": None, "eos_token_id": None}
IMAGE = {"image_size": 8, "patch_size": 4, "layer_norm_eps": 0.1}
TWO = {
    "vocab_size": V,
    "d_model": D,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 12,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
    "forced_eos_token_id": None,
}
ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}


def gpt2(**changes):
    # an epsilon so large that a forgotten one shows
    size = {"n_positions": 16, "n_embd": D, "n_layer": 2, "n_head": 2}
    size |= {"layer_norm_epsilon": 0.1}
    return hf.GPT2LMHeadModel(hf.GPT2Config(**TEXT | size | changes))


def llama(**changes):
    size = HIDDEN | ROTARY | {"rms_norm_eps": 0.1}
    size |= {"hidden_size": 16, "num_attention_heads": 4}  # two pairs a head
    return hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT | size | changes))


def bert(kind=hf.BertModel, **changes):
    size = HIDDEN | {"vocab_size": V, "layer_norm_eps": 0.1}
    return kind(hf.BertConfig(**size | changes))


def marian(**changes):
    size = {"max_position_embeddings": 16}
    return hf.MarianMTModel(hf.MarianConfig(**TWO | size | changes))


def vit(kind=hf.ViTModel, **changes):
    return kind(hf.ViTConfig(**HIDDEN | IMAGE | changes))


def dinov2(**changes):
    size = {k: v for k, v in HIDDEN.items() if k != "intermediate_size"}
    return hf.Dinov2Model(hf.Dinov2Config(**size | IMAGE | changes))


def whisper(**changes):
    size = {"max_source_positions": S, "begin_suppress_tokens": None}
    return hf.WhisperForConditionalGeneration(hf.WhisperConfig(**TWO | size | changes))


MODELS = {
    "gpt2": gpt2,
    "gpt2-untied": lambda: gpt2(tie_word_embeddings=False, n_inner=20),
    "gpt2-relu": lambda: gpt2(activation_function="relu"),
    "llama": llama,
    "llama-grouped": lambda: llama(num_key_value_heads=2, tie_word_embeddings=True),
    "llama-one-key": lambda: llama(num_key_value_heads=1),
    "bert": bert,
    "bert-tanh-gelu": lambda: bert(hidden_act="gelu_new", type_vocab_size=3),
    "bert-masked": lambda: bert(hf.BertForMaskedLM),
    "marian": marian,
    "marian-swish": lambda: marian(activation_function="swish", scale_embedding=True),
    "vit": vit,
    "vit-no-bias": lambda: vit(qkv_bias=False),
    "vit-classes": lambda: vit(hf.ViTForImageClassification, num_labels=5),
    "vit-one-channel": lambda: vit(num_channels=1),
    "dinov2": dinov2,
    "dinov2-no-bias": lambda: dinov2(qkv_bias=False, mlp_ratio=2),
    "whisper": whisper,
}


def spread(model: nn.Module) -> nn.Module:
    """Make no weight small, none zero, none one: those would hide mistakes."""
    for name, weight in model.named_parameters():
        if not (isinstance(model, hf.MarianMTModel) and "embed_positions" in name):
            nn.init.normal_(weight, std=0.3)
    if isinstance(model, hf.MarianMTModel):
        nn.init.normal_(model.final_logits_bias)
    return model.eval()


@dataclass
class Inputs:
    """A batch for every family; ``real`` is False in the filling on the right."""

    ids: Tensor
    real: Tensor
    segments: Tensor
    target: Tensor
    images: Tensor
    sounds: Tensor


@pytest.fixture
def inputs() -> Inputs:
    torch.manual_seed(0)
    return Inputs(
        ids=torch.randint(2, V, (B, S)),
        real=torch.arange(S) < torch.tensor([S, 6, 4])[:, None],
        segments=torch.randint(2, (B, S)),
        target=torch.randint(2, V, (B, T)),
        images=torch.randn(B, 3, 8, 8),
        sounds=torch.randn(B, 80, 2 * S),
    )


@torch.no_grad()
def run_theirs(model: nn.Module, x: Inputs) -> Tensor:
    """What their model makes of the inputs, rows of filling left out."""
    mask, kind = x.real.long(), model.config.model_type
    if kind == "marian":
        out = model(x.ids, attention_mask=mask, decoder_input_ids=x.target)
        return out.logits
    if kind == "whisper":
        return model(x.sounds, decoder_input_ids=x.target).logits
    if kind in ("vit", "dinov2"):
        return model(x.images[:, : model.config.num_channels])[0]
    if kind == "bert":
        return model(x.ids, mask, token_type_ids=x.segments)[0][x.real]
    return model(x.ids, attention_mask=mask).logits[x.real]


@torch.no_grad()
def run_ours(model: nn.Module, kind: str, x: Inputs) -> Tensor:
    if kind == "marian":
        return model(x.ids, x.target, x.real)
    if kind == "whisper":
        return model(x.sounds, x.target)
    if kind in ("vit", "dinov2"):
        return model(x.images[:, : model.config.n_channels])
    if kind == "bert":
        return model(x.ids, x.real, x.segments)[x.real]
    return model(x.ids, x.real)[x.real]


def assert_equal(ours: nn.Module, theirs: nn.Module, x: Inputs) -> None:
    got = run_ours(ours, theirs.config.model_type, x)
    torch.testing.assert_close(got, run_theirs(theirs, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_ours_equals_theirs(name: str, inputs: Inputs, tmp_path: Path) -> None:
    theirs = spread(MODELS[name]())
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    assert not ours.training
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in ours.parameters())
    assert_equal(ours, theirs, inputs)


@pytest.mark.parametrize("name", MODELS)
def test_what_we_write_they_read(name: str, inputs: Inputs, tmp_path: Path) -> None:
    theirs = spread(MODELS[name]())
    theirs.save_pretrained(tmp_path / "a")
    ours = from_pretrained(tmp_path / "a")
    architecture = type(theirs).__name__
    save_pretrained(ours, tmp_path / "b", architecture, pad_token_id=0)
    names = sorted(path.name for path in (tmp_path / "b").iterdir())
    assert names == ["config.json", "model.safetensors"]
    back, report = type(theirs).from_pretrained(
        tmp_path / "b", output_loading_info=True
    )
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    assert all("pooler." in key for key in report["missing_keys"])  # we have none
    assert_equal(ours, back.eval(), inputs)
    again = from_pretrained(tmp_path / "b")
    # d_ff = 0 is written out
    assert replace(again.config, d_ff=ours.config.d_ff) == ours.config
    for key, weight in ours.state_dict().items():
        assert torch.equal(again.state_dict()[key], weight), key


def test_shards(inputs: Inputs, tmp_path: Path) -> None:
    theirs = spread(llama())
    theirs.save_pretrained(tmp_path, max_shard_size="2KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert not (tmp_path / "model.safetensors").exists()
    assert_equal(from_pretrained(tmp_path), theirs, inputs)
    first = min(tmp_path.glob("model-*.safetensors"))
    first.unlink()
    with pytest.raises(FileNotFoundError, match=f"{first.name} is missing"):
        from_pretrained(tmp_path)


def rename(folder: Path, change: dict[str, str]) -> None:
    """Replace words in the names of a file's tensors."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for old, new in change.items():
        tensors = {re.sub(old, new, name): t for name, t in tensors.items()}
    save_file(tensors, path)


def test_the_first_names_of_gpt2(inputs: Inputs, tmp_path: Path) -> None:
    """No prefix, the causal mask among the tensors, the tied table twice."""
    theirs = spread(gpt2())
    theirs.save_pretrained(tmp_path)
    rename(tmp_path, {r"^transformer\.": ""})
    tensors = load_file(tmp_path / "model.safetensors")
    for i in range(2):
        tensors[f"h.{i}.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
        tensors[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["lm_head.weight"] = tensors["wte.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    assert_equal(from_pretrained(tmp_path), theirs, inputs)


def test_the_first_names_of_bert(inputs: Inputs, tmp_path: Path) -> None:
    theirs = spread(bert(hf.BertForMaskedLM))
    theirs.save_pretrained(tmp_path)
    rename(tmp_path, {r"LayerNorm\.weight": "LayerNorm.gamma"})
    rename(tmp_path, {r"LayerNorm\.bias": "LayerNorm.beta"})
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["cls.seq_relationship.weight"] = torch.ones(2, D)
    tensors["bert.pooler.dense.weight"] = torch.ones(D, D)
    tensors["bert.embeddings.position_ids"] = torch.arange(512)
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    assert_equal(from_pretrained(tmp_path), theirs, inputs)


def test_bert_inside_a_prefix(inputs: Inputs, tmp_path: Path) -> None:
    theirs = spread(bert())
    theirs.save_pretrained(tmp_path)
    rename(tmp_path, {"^": "bert."})
    assert_equal(from_pretrained(tmp_path), theirs, inputs)


def test_rope_theta_as_it_used_to_be_written(inputs: Inputs, tmp_path: Path) -> None:
    theirs = spread(llama())
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["rope_scaling"] = None
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_equal(from_pretrained(tmp_path), theirs, inputs)


@pytest.mark.parametrize("theirs_last", [True, False])
def test_sines_of_2017_are_written_as_a_table(
    theirs_last: bool, inputs: Inputs, tmp_path: Path
) -> None:
    """Our sines alternate with cosines; in Marian's format they are a stored table."""
    from transformer.encoder_decoder import Transformer, TransformerConfig

    ours = Transformer(
        TransformerConfig(vocab_size=V, max_len=16, d_model=D, n_heads=2, n_layers=2)
    ).eval()
    save_pretrained(ours, tmp_path, pad_token_id=0)
    if theirs_last:
        assert_equal(ours, hf.MarianMTModel.from_pretrained(tmp_path).eval(), inputs)
    else:
        got = run_ours(from_pretrained(tmp_path), "marian", inputs)
        expected = run_ours(ours, "marian", inputs)
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


# ---- generation: their cache against our whole pass -------------------------------

STEPS = 7


def their_steps(model: nn.Module, **start: Tensor) -> tuple[Tensor, Tensor]:
    """Their greedy ids and each step's logits ``(B, steps, V)``, with the cache."""
    out = hf.GenerationMixin.generate(
        model,
        do_sample=False,
        use_cache=True,
        max_new_tokens=STEPS,
        eos_token_id=V,  # no word stops: all steps are compared
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
        **start,
    )
    return out.sequences, torch.stack(out.logits, dim=1)


def assert_steps(logits: Tensor, expected: Tensor) -> None:
    """Our last rows, one a step, against theirs."""
    torch.testing.assert_close(logits[:, -STEPS:], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama-grouped"])
@torch.no_grad()
def test_gpt_writes_the_same(name: str, inputs: Inputs, tmp_path: Path) -> None:
    theirs = spread(MODELS[name]())
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    ids, logits = their_steps(theirs, input_ids=inputs.ids[:, :T])
    assert torch.equal(generate(ours, inputs.ids[:, :T], STEPS, temperature=0), ids)
    assert_steps(ours(ids[:, :-1]), logits)


@torch.no_grad()
def test_marian_translates_the_same(inputs: Inputs, tmp_path: Path) -> None:
    theirs = spread(marian())
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    mask = inputs.real.long()
    ids, logits = their_steps(theirs, input_ids=inputs.ids, attention_mask=mask)
    assert_steps(ours(inputs.ids, ids[:, :-1], inputs.real), logits)
    stop = 1
    got = translate(
        ours, inputs.ids, 0, stop, source_mask=inputs.real, max_new_tokens=STEPS
    )
    for row, want in zip(got, ids[:, 1:].tolist(), strict=True):
        assert row == (want[: want.index(stop)] if stop in want else want)


@torch.no_grad()
def test_whisper_writes_the_same(inputs: Inputs, tmp_path: Path) -> None:
    theirs = spread(whisper())
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    for sound, start in zip(
        inputs.sounds[:, None], inputs.target[:, None], strict=True
    ):
        ids, logits = their_steps(theirs, input_features=sound, decoder_input_ids=start)
        assert_steps(ours(sound, ids[:, :-1]), logits)
        written = ids[0, T:].tolist()
        assert transcribe(ours, sound, start[0].tolist(), V, STEPS) == written
        stop = written[3]
        got = transcribe(ours, sound, start[0].tolist(), stop, STEPS)
        assert got == written[: written.index(stop)]


# ---- PaLM's block: Cohere's differs from it in the order of rotary pairs alone -----


def test_palm_style_equals_cohere(inputs: Inputs) -> None:
    theirs = spread(
        hf.CohereForCausalLM(
            hf.CohereConfig(
                **TEXT | HIDDEN | ROTARY | {"hidden_size": 16},
                pad_token_id=0,
                num_key_value_heads=1,
                logit_scale=1.0,
                tie_word_embeddings=True,
            )
        )
    )
    config = GPTConfig(
        **PALM,
        vocab_size=V,
        max_len=16,
        d_model=16,
        n_heads=2,
        n_layers=2,
        d_ff=12,
        rotary_base=50.0,
    )
    ours = GPT(config).eval()
    names = {
        "model.embed_tokens": "embedding",
        "model.norm": "stack.norm",
        "model.layers": "stack.blocks",
        "input_layernorm": "norm_1",
        "self_attn.q_proj": "attention.query",
        "self_attn.k_proj": "attention.key",
        "self_attn.v_proj": "attention.value",
        "self_attn.o_proj": "attention.output",
        "mlp.gate_proj": "feed_forward.gate",
        "mlp.up_proj": "feed_forward.up",
        "mlp.down_proj": "feed_forward.down",
        "lm_head": "head",
    }
    state = {}
    for name, weight in theirs.state_dict().items():
        if "q_proj" in name or "k_proj" in name:  # neighbours -> halves
            weight = rearrange(weight, "(H k two) D -> (H two k) D", two=2, k=4)
        for old, new in names.items():
            name = name.replace(old, new)
        state[name] = weight
    ours.load_state_dict(state)
    assert_equal(ours, theirs, inputs)


# ---- the real weights ----------------------------------------------------------------


def real(name: str) -> Path:
    """A folder of `make weights`; without it the test is skipped, in CI it fails."""
    import bookkit as kit

    if folder := kit.weights(name):
        return folder
    message = f"the weights of {name} are absent: `make weights` downloads them"
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(message)
    pytest.skip(message)


def assert_close_by_size(got: Tensor, expected: Tensor) -> None:
    """Long sums in float32: a difference is measured against the largest number."""
    torch.testing.assert_close(
        got / expected.abs().max(), expected / expected.abs().max(), atol=1e-5, rtol=0
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"), [("minilm", hf.BertModel), ("smollm2", hf.LlamaForCausalLM)]
)
@torch.no_grad()
def test_real_text_models(name: str, kind: type) -> None:
    folder = real(name)
    ours = from_pretrained(folder)
    theirs = kind.from_pretrained(folder, dtype=torch.float32).eval()
    torch.manual_seed(0)
    ids = torch.randint(1000, (2, 40))
    mask = torch.arange(40) < torch.tensor([[40], [23]])
    expected = theirs(ids, attention_mask=mask.long())[0]
    assert_close_by_size(ours(ids, mask)[mask], expected[mask])
    if name == "minilm":
        torch.testing.assert_close(
            ours(ids, mask)[mask], expected[mask], atol=1e-5, rtol=0
        )


@pytest.mark.slow
@torch.no_grad()
def test_real_smollm2_writes_the_same() -> None:
    folder = real("smollm2")
    ours = from_pretrained(folder)
    theirs = hf.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer.encode("The capital of France is")])
    expected = theirs.generate(ids, do_sample=False, use_cache=True, max_new_tokens=6)
    got = generate(ours, ids, 6, temperature=0)
    assert torch.equal(got, expected)
    assert "Paris" in tokenizer.decode(got[0])


@pytest.mark.slow
@torch.no_grad()
def test_real_dinov2() -> None:
    folder = real("dinov2")
    torch.manual_seed(0)
    image = torch.randn(1, 3, 518, 518)
    theirs = hf.Dinov2Model.from_pretrained(folder).eval()
    expected = theirs(image).last_hidden_state
    assert_close_by_size(from_pretrained(folder)(image), expected)


@pytest.mark.slow
@torch.no_grad()
def test_real_whisper_hears_the_clip() -> None:
    import wave

    import numpy as np

    import bookkit as kit

    folder = real("whisper")
    ours = from_pretrained(folder)
    theirs = hf.WhisperForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32
    ).eval()
    with wave.open(str(kit.DATA / "speech" / "clip.wav")) as file:
        rate = file.getframerate()
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype=np.int16)
    listen = hf.WhisperFeatureExtractor.from_pretrained(folder)
    features = listen(samples / 32768, sampling_rate=rate, return_tensors="pt")
    features = features.input_features
    prompt = torch.tensor([[50258, 50259, 50359, 50363]])  # English, no times
    assert_close_by_size(
        ours(features, prompt), theirs(features, decoder_input_ids=prompt).logits
    )
    said = transcribe(ours, features, prompt[0].tolist(), stop=50257)
    expected = hf.GenerationMixin.generate(
        theirs,
        input_features=features,
        decoder_input_ids=prompt,
        do_sample=False,
        use_cache=True,
        max_new_tokens=40,
        eos_token_id=50257,
    )
    assert [*prompt[0].tolist(), *said, 50257] == expected[0].tolist()
    words = hf.AutoTokenizer.from_pretrained(folder).decode(said)
    assert words.strip() == kit.text("speech").strip()
