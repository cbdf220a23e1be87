"""The feed-forward networks against GPT-2's and Llama's own, and a loop."""

import pickle

import pytest
import torch
from transformers import GPT2Config, LlamaConfig
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.llama.modeling_llama import LlamaMLP

from transformer.feed_forward import ACTIVATIONS, FeedForward, GatedFeedForward


def test_equals_gpt2():
    theirs = GPT2MLP(24, GPT2Config(n_embd=6)).eval()
    ours = FeedForward(6, 24, "gelu_tanh")
    with torch.no_grad():
        for a, b in ((theirs.c_fc, ours.up), (theirs.c_proj, ours.down)):
            torch.nn.init.normal_(a.weight)
            torch.nn.init.normal_(a.bias)
            b.weight.copy_(a.weight.T)
            b.bias.copy_(a.bias)
    x = torch.randn(2, 5, 6)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_equals_llama():
    config = LlamaConfig(hidden_size=6, intermediate_size=10, num_attention_heads=1)
    theirs, ours = LlamaMLP(config).double(), GatedFeedForward(6, 10).double()
    with torch.no_grad():
        for name in ("gate", "up", "down"):
            getattr(ours, name).weight.copy_(getattr(theirs, f"{name}_proj").weight)
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-10, rtol=1e-10)


def test_relu_network_equals_a_loop_over_units():
    net = FeedForward(3, 7).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    rows = []
    for row in x:
        total = net.down.bias.clone()
        for unit in range(7):
            fires = row @ net.up.weight[unit] + net.up.bias[unit]
            total = total + max(fires.item(), 0.0) * net.down.weight[:, unit]
        rows.append(total)
    torch.testing.assert_close(net(x), torch.stack(rows), atol=1e-10, rtol=0)


def test_gelu_and_its_tanh_form_are_two_functions():
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    exact = x * (1 + torch.erf(x / 2**0.5)) / 2
    inner = (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)
    tanh = x * (1 + torch.tanh(inner)) / 2
    torch.testing.assert_close(ACTIVATIONS["gelu"](x), exact, atol=1e-10, rtol=0)
    torch.testing.assert_close(ACTIVATIONS["gelu_tanh"](x), tanh, atol=1e-10, rtol=0)
    assert (exact - tanh).abs().max() > 1e-4


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_networks_can_be_pickled(name):
    """As ``torch.save(model)`` and every program with several processes do."""
    net, x = FeedForward(2, 4, name), torch.randn(3, 2)
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), net(x))


def test_no_bias_and_no_such_activation():
    assert [n for n, _ in FeedForward(2, 4, bias=False).named_parameters()] == [
        "up.weight",
        "down.weight",
    ]
    with pytest.raises(ValueError, match=r"activation must be one of .*'tanh'"):
        FeedForward(2, 4, "tanh")
