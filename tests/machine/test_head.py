import pytest
import torch

from inheritune.machine.head import split_head


def test_body_plus_head_equals_forward(family, build_model):
    model = build_model(family)
    ids_BT = torch.randint(0, 256, (3, 17), generator=torch.Generator().manual_seed(1))
    split = split_head(model)
    assert split is not None
    with torch.no_grad():
        own_BTV = model(input_ids=ids_BT, use_cache=False).logits
        assert torch.equal(split.head(split.body(ids_BT)), own_BTV)


@pytest.mark.parametrize("family_with_scaled_logits", ["cohere", "gemma2"])
def test_the_output_matrix_alone_would_miss_scale_and_cap(family_with_scaled_logits, build_model):
    model = build_model(family_with_scaled_logits)
    split = split_head(model)
    hidden_BTD = torch.randn(1, 2, 32)
    with torch.no_grad():
        assert not torch.allclose(split.head(hidden_BTD), model.get_output_embeddings()(hidden_BTD))


def test_the_split_shares_the_model_parameters(build_model):
    model = build_model("llama")
    split = split_head(model)
    owned = {id(parameter) for parameter in model.parameters()}
    assert {id(parameter) for parameter in [*split.body.parameters(), *split.head.parameters()]} == owned


def test_a_model_whose_logits_need_more_than_hidden_states_is_not_split(build_model):
    model = build_model("llama")
    own_forward = model.forward

    def forward(input_ids=None, inputs_embeds=None, **others):
        output = own_forward(input_ids=input_ids, inputs_embeds=inputs_embeds, **others)
        if input_ids is not None:  # the head of this model looks at the ids again
            output.logits = output.logits + input_ids[..., None]
        return output

    model.forward = forward
    assert split_head(model) is None


def test_the_mode_of_the_model_is_left_as_it_was(build_model):
    model = build_model("gpt2").train()
    split_head(model)
    assert model.training
