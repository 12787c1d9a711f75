"""Small graphs that are changed in one place: those that stay foldable keep their numbers, the others get a reason."""

import re
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest

from taylorseer.exporter.folding import Folding, Refusal, Term, prove_foldable

FORECAST = """
<ir_version: 10, opset_import: ["" : 20, "other" : 1]>
forecast (
    float[B,6,4] latent, float[B,2,4] text, float[B,1,4] gate1, float[B,1,4] gate2, float[B,6,4] rowgate,
    float[B,6,4] attn, float[B,6,4] ff
) => (float[B,6,4] prediction)
<
    float[4,4] w = {1, 2, 0, 1, 0, 1, 0, 1, 2, 0, 1, 0, 1, 1, 0, 1}, float[4] ones = {1, 1, 1, 1},
    float two = {2}, float most = {65504}, float least = {-65504}, float one = {1},
    int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] i2 = {2}, int64[1] i4 = {4}, int64[1] i6 = {6}, int64[1] i8 = {8},
    int64[3] sizes = {0, 6, 4}
>
{
    embed = MatMul(latent, w)
    gated1 = Mul(gate1, attn)
    h1 = Add(embed, gated1)
    gated2 = Mul(gate2, ff)
    h2 = Add(gated2, h1)
    normed = LayerNormalization<axis = -1>(h2, ones)
    prediction = MatMul(normed, w)
}
"""

FEATURES = {"attn": "blocks.0.attn", "ff": "blocks.0.ff"}

PREPARED = ("text", "gate1", "gate2", "rowgate")

WHOLE = (0, 6)

Change = tuple[str, str]


def changed(*changes: Change) -> ir.Model:
    """The forecast above with pieces of its text replaced."""
    text = FORECAST
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    model = ir.from_onnx_text(text)
    common.ShapeInferencePass()(model)
    for value in model.graph.inputs:
        if value.name in PREPARED:
            value.name = f"prepared.{value.name}"
    return model


def prove(*changes: Change) -> Folding | Refusal:
    return prove_foldable(changed(*changes), FEATURES)


def test_the_forecast_itself_is_foldable() -> None:
    assert prove() == Folding(
        stream="h2",
        embed="embed",
        embed_rows=WHOLE,
        terms=(
            Term(feature="blocks.0.attn", gates=("prepared.gate1",), rows=WHOLE, feature_rows=WHOLE),
            Term(feature="blocks.0.ff", gates=("prepared.gate2",), rows=WHOLE, feature_rows=WHOLE),
        ),
        casts=(),
    )


GATED1, GATED2 = "gated1 = Mul(gate1, attn)", "gated2 = Mul(gate2, ff)"
FIRST, SECOND = "h1 = Add(embed, gated1)", "h2 = Add(gated2, h1)"
NORM, LAST = "normed = LayerNormalization<axis = -1>(h2, ones)", "prediction = MatMul(normed, w)"

FOLDABLE: dict[str, list[Change]] = {
    "nothing changed": [],
    "no gate": [(GATED1, "gated1 = Identity(attn)")],
    "a scalar gate": [(GATED1, "gated1 = Mul(attn, two)")],
    "a gate for each column, the same for every batch row": [(GATED1, "gated1 = Mul(ones, attn)")],
    "a gate that is a function of what was prepared": [
        (GATED1, "squashed = Tanh(gate1) sum = Add(squashed, gate2) gated1 = Mul(sum, attn)")
    ],
    "two gates, one after the other": [(GATED1, "half = Mul(gate1, attn) gated1 = Mul(half, gate2)")],
    "one gate for a sum of features": [
        (GATED1, "both = Add(attn, ff) gated1 = Mul(gate1, both)"),
        (GATED2, "gated2 = Identity(embed)"),
        (FIRST, "h1 = Identity(gated1)"),
    ],
    "a cast and back": [(GATED1, "short = Cast<to = 10>(attn) long = Cast<to = 1>(short) gated1 = Mul(gate1, long)")],
    "rows of the stream cut and joined again": [
        (
            SECOND,
            "top = Slice(h1, i0, i2, i1) bottom = Slice(h1, i2, i6, i1) joined = Concat<axis = -2>(top, bottom)"
            " h2 = Add(joined, gated2)",
        )
    ],
    "a feature on some rows": [
        (
            SECOND,
            "top = Slice(h1, i0, i2, i1) bottom = Slice(h1, i2, i6, i1) part = Slice(gated2, i1, i1 + 4, i1)"
            " more = Add(bottom, part) h2 = Concat<axis = 1>(top, more)".replace("i1 + 4", "i5"),
        ),
        ("int64[1] i4 = {4}", "int64[1] i4 = {4}, int64[1] i5 = {5}"),
    ],
    "rows of text, cut away before the end": [
        (
            FIRST,
            "long = Concat<axis = 1>(text, embed) wide = Concat<axis = 1>(text, gated1) sum = Add(long, wide)"
            " h1 = Slice(sum, i2, i8, i1)",
        )
    ],
    "a negative gate": [(GATED1, "minus = Neg(gate1) gated1 = Mul(minus, attn)")],
    "a final layer that clips, scales and adds": [
        (NORM, "clipped = Min(h2, most) scaled = Mul(clipped, rowgate) normed = Sub(scaled, h2)")
    ],
}


@pytest.mark.parametrize("name", FOLDABLE)
def test_what_stays_foldable_is_the_sum_that_the_proof_says(run_model: Any, name: str) -> None:
    model = changed(*FOLDABLE[name])
    folding = prove_foldable(model, FEATURES)
    assert isinstance(folding, Folding), folding
    random = np.random.default_rng(0)
    inputs = {
        str(value.name): random.standard_normal([size if isinstance(size, int) else 3 for size in value.shape or ()])
        for value in model.graph.inputs
    }
    inputs = {key: value.astype(np.float32) for key, value in inputs.items()}
    made = {str(value.name): value for node in model.graph for value in node.outputs}
    gates = {gate for term in folding.terms for gate in term.gates}
    model.graph.outputs.extend(made[key] for key in {folding.stream, folding.embed, *gates} if key in made)
    constants = {key: value.const_value.numpy() for key, value in model.graph.initializers.items() if value.const_value}
    found = constants | inputs | run_model(model, inputs)
    total = found[folding.embed][:, slice(*folding.embed_rows)].astype(np.float64)
    for term in folding.terms:
        part = found[value_of(term.feature)][:, slice(*term.feature_rows)].astype(np.float64)
        for gate in term.gates:
            part = part * found[gate]
        total[:, slice(*term.rows)] += part
    # One rounding to float32 per operation, on numbers below 20; the cast to float16 has an 11 bit significand.
    np.testing.assert_allclose(found[folding.stream], total, rtol=0, atol=1e-2 if folding.casts else 1e-5)


def value_of(feature: str) -> str:
    return next(value for value, name in FEATURES.items() if name == feature)


def test_terms_say_which_rows_and_which_gates() -> None:
    partly = prove(*FOLDABLE["a feature on some rows"])
    assert isinstance(partly, Folding)
    assert [(term.rows, term.feature_rows) for term in partly.terms] == [(WHOLE, WHOLE), ((2, 6), (1, 5))]
    twice = prove(*FOLDABLE["two gates, one after the other"])
    assert isinstance(twice, Folding)
    assert twice.terms[0].gates == ("prepared.gate1", "prepared.gate2")
    ungated = prove(*FOLDABLE["no gate"])
    assert isinstance(ungated, Folding)
    assert ungated.terms[0].gates == ()


def test_casts_between_floats_are_reported() -> None:
    folding = prove(*FOLDABLE["a cast and back"])
    assert isinstance(folding, Folding)
    assert folding.casts == ("short", "long")


def test_the_last_rounding_belongs_to_the_final_layer() -> None:
    rounded = "short = Cast<to = 16>(h2) long = Cast<to = 1>(short) "
    folding = prove((NORM, rounded + NORM.replace("h2", "long")))
    assert isinstance(folding, Folding)
    assert (folding.stream, folding.casts) == ("h2", ())


REFUSED: dict[str, tuple[list[Change], str]] = {
    "a norm between additions": (
        [(SECOND, "inner = LayerNormalization<axis = -1>(h1, ones) h2 = Add(gated2, inner)")],
        r"LayerNormalization 'inner\w*' takes 'h1' between the additions, with 'blocks.0.ff' not yet added: .*linear",
    ),
    "a softmax between additions": (
        [(SECOND, "inner = Softmax(h1) h2 = Add(gated2, inner)")],
        r"Softmax .* takes 'h1' between the additions, .*: Softmax is not linear in it",
    ),
    "a nonlinear branch beside the stream": (
        [(SECOND, "inner = Tanh(h1) both = Add(h1, inner) h2 = Add(gated2, both)")],
        r"Tanh .* takes 'h1' between the additions",
    ),
    "a feature after the final norm": (
        [(NORM, "final = LayerNormalization<axis = -1>(h1, ones) normed = Add(final, gated2)"), (SECOND, "")],
        r"LayerNormalization .* takes 'h1' between the additions, with 'blocks.0.ff' not yet added",
    ),
    "a feature in the stream and after the final norm": (
        [(NORM, "final = LayerNormalization<axis = -1>(h2, ones) normed = Add(final, gated2)")],
        r"Add .* takes 'gated2' before .*: it is joined with 'final', which knows 'blocks.0.ff' and .* not by addition",
    ),
    "an addend of four axes": (
        [
            (
                SECOND,
                "tall = Unsqueeze(latent, i1) more = Add(h1, tall) flat = ReduceMean<keepdims = 0>(more, i1)"
                " h2 = Add(gated2, flat)",
            )
        ],
        r"'tall' has the shape \[B,1,6,4\], and \[batch, rows, width\] is needed",
    ),
    "an addend without a fixed number of rows": (
        [("float[B,2,4] text", "float[B,T,4] text"), (SECOND, "more = Add(h1, text) h2 = Add(gated2, more)")],
        r"'prepared.text' \[B,T,4\] has no fixed size where rows and width are",
    ),
    "a gate that reads the latent": (
        [(GATED1, "gate = ReduceMean(latent, i1) gated1 = Mul(gate, attn)")],
        r"Mul .* takes 'attn': its gate 'gate' reads the latent, and gates have to be known before",
    ),
    "a gate that is another feature": (
        [(GATED1, "gated1 = Mul(ff, attn)")],
        r"Mul .*: its gate 'ff' reads another feature, 'blocks.0.ff'",
    ),
    "a gate that is made of another feature": (
        [(GATED1, "mean = ReduceMean(ff, i1) gate = Sigmoid(mean) gated1 = Mul(gate, attn)")],
        r"Mul .* takes 'attn': its gate 'gate' reads another feature, 'blocks.0.ff'",
    ),
    "a feature squared": (
        [(GATED1, "gated1 = Mul(attn, attn)")],
        r"Mul .* takes 'attn': 'blocks.0.attn' is multiplied by itself",
    ),
    "a feature times a gate made of itself": (
        [(GATED1, "gate = ReduceMean(attn, i1) gated1 = Mul(gate, attn)")],
        r"Mul .*: 'blocks.0.attn' is multiplied by itself",
    ),
    "a gated residual": (
        [(SECOND, "scaled = Mul(h1, gate1) h2 = Add(gated2, scaled)")],
        r"Mul .* takes 'h1' between the additions, .*: it scales the residual itself, with 'embed' in it",
    ),
    "a constant times the residual": (
        [(SECOND, "scaled = Mul(two, h1) h2 = Add(gated2, scaled)")],
        r"it scales the residual itself, with 'embed' in it",
    ),
    "a product of a feature": (
        [(GATED1, "product = MatMul(attn, w) gated1 = Mul(gate1, product)")],
        r"MatMul .* takes 'attn' before 'blocks.0.attn' is added to the stream: a block's own product is computed",
    ),
    "a product of the stream beside it": (
        [(SECOND, "product = MatMul(h1, w) both = Add(h1, product) h2 = Add(gated2, both)")],
        r"MatMul .* takes 'h1' between the additions, .*: a block's own product is computed",
    ),
    "rows of text that reach the prediction": (
        [
            (
                SECOND,
                "joined = Concat<axis = 1>(text, h1) tall = Concat<axis = 1>(text, gated2) h2 = Add(tall, joined)",
            ),
            ("(float[B,6,4] prediction)", "(float[B,8,4] prediction)"),
        ],
        r"The rows 0:2 of 'h2', to which .* of another stream: nothing of the latent is in them",
    ),
    "rows of text after the last addition": (
        [
            (SECOND, "sum = Add(gated2, h1) h2 = Concat<axis = 1>(sum, text)"),
            ("(float[B,6,4] prediction)", "(float[B,8,4] prediction)"),
        ],
        r"The rows 6:8 of 'h2', to which no feature is added, are of another stream",
    ),
    "a text feature that reaches the prediction": (
        [
            ("float[B,6,4] ff", "float[B,2,4] ff"),
            (SECOND, "stream = Add(text, gated2) h2 = Concat<axis = 1>(h1, stream)"),
            ("(float[B,6,4] prediction)", "(float[B,8,4] prediction)"),
        ],
        r"The rows 6:8 of 'h2', to which 'blocks.0.ff' is added, are of another stream",
    ),
    "a feature used twice": (
        [(SECOND, "again = Add(h1, attn) h2 = Add(gated2, again)")],
        r"The feature 'blocks.0.attn' is added to 'h2' 2 times; once is needed",
    ),
    "rows of a feature in another order": (
        [
            (
                GATED1,
                "top = Slice(attn, i0, i2, i1) bottom = Slice(attn, i2, i6, i1)"
                " turned = Concat<axis = 1>(bottom, top) gated1 = Mul(gate1, turned)",
            )
        ],
        r"The feature 'blocks.0.attn' is added to 'h2' 2 times",
    ),
    "a feature that is never used": (
        [(SECOND, "h2 = Identity(h1)")],
        r"The feature 'blocks.0.ff' never reaches the prediction",
    ),
    "a feature whose rows are all cut away": (
        [
            (
                SECOND,
                "wide = Concat<axis = 1>(text, gated2) top = Slice(wide, i0, i2, i1)"
                " lines = Concat<axis = 1>(top, top, top) scaled = Mul(lines, two) h2 = Identity(h1)",
            ),
            (NORM, "inner = LayerNormalization<axis = -1>(h2, ones) normed = Add(inner, scaled)"),
        ],
        r"No row of the feature 'blocks.0.ff' reaches the prediction",
    ),
    "a feature all of whose rows are cut away from the latent": (
        [
            (
                SECOND,
                "wide = Concat<axis = 1>(latent, gated2) top = Slice(wide, i0, i6, i1) h2 = Add(h1, top)",
            )
        ],
        r"No row of the feature 'blocks.0.ff' reaches the prediction",
    ),
    "features joined along the width": (
        [
            (GATED1, "left = Concat<axis = 2>(attn, attn) cut = Slice(left, i0, i4, i2) gated1 = Mul(gate1, cut)"),
        ],
        r"Concat .* takes 'attn' before .*: it is joined along the width; only rows may be joined",
    ),
    "features joined along the batch": (
        [(GATED1, "more = Concat<axis = 0>(attn, attn) gated1 = Mul(two, more)")],
        r"it is joined along the batch; only rows may be joined",
    ),
    "a slice of the width": (
        [
            (GATED1, "part = Slice(attn, i0, i1, i2) gated1 = Mul(gate1, part)"),
        ],
        r"Slice .* takes 'attn' before .*: it is cut on the width; only rows may be cut",
    ),
    "a slice with a step": (
        [
            (
                GATED1,
                "part = Slice(attn, i0, i6, i1, i2) twice = Concat<axis = 1>(part, part) gated1 = Mul(gate1, twice)",
            )
        ],
        r"Slice .* takes 'attn' before .*: it is cut with a step",
    ),
    "a reshape of a feature": (
        [(GATED1, "same = Reshape(attn, sizes) gated1 = Mul(gate1, same)")],
        r"Reshape .* takes 'attn' before .*: its rows are rearranged",
    ),
    "a transposition of a feature": (
        [(GATED1, "t = Transpose<perm = [0, 2, 1]>(attn) u = Transpose<perm = [0, 2, 1]>(t) gated1 = Mul(gate1, u)")],
        r"Transpose .* takes 'attn' before .*: its rows are rearranged",
    ),
    "a feature subtracted": (
        [(FIRST, "h1 = Sub(embed, gated1)")],
        r"Sub .* takes 'gated1' before .*: the coefficient -1 is no gate; negate the gate and add",
    ),
    "the stream subtracted from a feature": (
        [(SECOND, "h2 = Sub(gated2, h1)")],
        r"Sub .*: the coefficient -1 is no gate",
    ),
    "a feature divided by a gate": (
        [(GATED1, "gated1 = Div(attn, gate1)")],
        r"Div .* takes 'attn' before .*: it is divided, and a gate has to multiply",
    ),
    "a gate divided by a feature": ([(GATED1, "gated1 = Div(gate1, attn)")], r"Div .* takes 'attn' before"),
    "a gate for each row": (
        [(GATED1, "gated1 = Mul(rowgate, attn)")],
        r"its gate 'prepared.rowgate' \[B,6,4\] differs from row to row; \[batch, 1, width\] or a scalar is needed",
    ),
    "a gate that lines up with the rows": (
        [
            (
                GATED1,
                "flat = Slice(w, i0, i1, i0) rows = Concat<axis = 0>(flat, flat, flat, flat, flat, flat)"
                " gated1 = Mul(rows, attn)",
            )
        ],
        r"its gate 'rows' \[6,4\] differs from row to row",
    ),
    "two streams": (
        [
            (SECOND, "other = Mul(latent, two) h2 = Add(gated2, other)"),
            (NORM, "n1 = LayerNormalization<axis = -1>(h1, ones) n2 = Softmax(h2) normed = Add(n1, n2)"),
        ],
        r"The prediction reads 2 streams, 'h\d' \(with .*\) and 'h\d' \(with .*\); one is needed",
    ),
    "two parts of one stream": (
        [
            (
                NORM,
                "top = Slice(h2, i0, i2, i1) bottom = Slice(h2, i2, i6, i1) a = Tanh(top) b = Tanh(bottom)"
                " normed = Concat<axis = 1>(a, b)",
            )
        ],
        r"The prediction reads 2 streams, 'top' .* and 'bottom'",
    ),
    "a feature with one row for all": (
        [("float[B,6,4] attn", "float[B,1,4] attn")],
        r"Add .* takes 'gated1' before .*: \[B,1,4\] is broadcast to the rows or the width of 'embed'",
    ),
    "a feature with one column for all": (
        [("float[B,6,4] attn", "float[B,6,1] attn")],
        r"Mul .* takes 'attn' before .*: \[B,6,1\] is broadcast to the rows or the width of 'prepared.gate1'",
    ),
    "a clip to the range of float16": (
        [(SECOND, "clip = Max(h1, least) clipped = Min(clip, most) h2 = Add(gated2, clipped)")],
        r"Max .* takes 'h1' between the additions, .*: a clip to the range of float16 .* use --precision bf16",
    ),
    "the same clip as one node": (
        [(SECOND, "clipped = Clip(h1, least, most) h2 = Add(gated2, clipped)")],
        r"Clip .*: a clip to the range of float16 is not linear; use --precision bf16",
    ),
    "a bound of the clip that is cast": (
        [(SECOND, "bound = Cast<to = 1>(most) clipped = Min(h1, bound) h2 = Add(gated2, clipped)")],
        r"Min .*: a clip to the range of float16 is not linear; use --precision bf16",
    ),
    "a clip to less": (
        [(SECOND, "clipped = Clip(h1, one, most) h2 = Add(gated2, clipped)")],
        r"Clip .*: Clip is not linear in it",
    ),
    "a cast to whole numbers": (
        [(GATED1, "whole = Cast<to = 7>(attn) back = Cast<to = 1>(whole) gated1 = Mul(gate1, back)")],
        r"Cast .* takes 'attn' before .*: it is cast to INT64; only casts between 16 and 32 bit floats only round",
    ),
    "another operator set's Add": (
        [(SECOND, "h2 = other.Add(gated2, h1)")],
        r"Add .* takes 'h1' between the additions, .*: Add is not linear in it, or not known to be",
    ),
    "nothing of the latent in the stream": (
        [(FIRST, "h1 = Identity(gated1)"), (NORM, "sum = Softmax(h2) normed = Add(sum, embed)")],
        r"Nothing of the latent is added to the features in 'h2'",
    ),
    "two embeddings": (
        [(SECOND, "more = Add(h1, latent) h2 = Add(gated2, more)")],
        r"Several addends of 'h2' have no features, 'embed' \(rows 0:6\) and 'latent' \(rows 0:6\); one for all rows",
    ),
    "a bias between the additions": (
        [(SECOND, "more = Add(h1, gate1) h2 = Add(gated2, more)")],
        r"Several addends of 'h2' have no features, 'embed' .* and 'prepared.gate1' \(rows 0:6\)",
    ),
    "an embedding of one row": (
        [("embed = MatMul(latent, w)", "embed = ReduceMean(latent, i1)")],
        r"The 6 rows of 'h2' share one row of 'embed' \[B,1,4\]; each needs its own",
    ),
    "features that never meet the stream by addition": (
        [(SECOND, "inner = Tanh(ff) h2 = Add(h1, inner)")],
        r"Tanh .* takes 'ff' before 'blocks.0.ff' is added to the stream: Tanh is not linear",
    ),
    "a branch on the stream": (
        [
            (
                SECOND,
                "h2 = If(yes) <then_branch = a () => (float[B,6,4] c) { c = Add(h1, gated2) },"
                " else_branch = b () => (float[B,6,4] d) { d = Tanh(gated2) }>",
            ),
            ("float one = {1}", "float one = {1}, bool yes = {1}"),
            (NORM, "both = Add(h1, gated2) more = Add(both, h2) normed = Identity(more)"),
        ],
        r"If .* has graphs of its own, which the proof does not look into",
    ),
    "a feature without rows": (
        [("float[B,6,4] attn", "float[B,4] attn"), (GATED1, "r = Unsqueeze(attn, i1) gated1 = Mul(gate1, r)")],
        r"The feature 'blocks.0.attn' has the shape \[B,4\]; \[batch, rows, width\] with fixed sizes is needed",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_folded_is_refused_with_its_reason(name: str) -> None:
    changes, reason = REFUSED[name]
    found = prove(*changes)
    assert isinstance(found, Refusal), found
    assert re.search(reason, found.reason), found.reason


def test_no_features_at_all_are_refused() -> None:
    assert prove_foldable(changed(), {}) == Refusal("No feature is forecast, so there is nothing to fold.")


def test_a_feature_that_is_no_input_is_refused() -> None:
    found = prove_foldable(changed(), {**FEATURES, "lost": "blocks.1.attn"})
    assert isinstance(found, Refusal)
    assert found.reason.startswith("The feature 'blocks.1.attn' never reaches the prediction.")


def test_an_unknown_input_counts_as_the_latent() -> None:
    model = changed()
    next(value for value in model.graph.inputs if value.name == "prepared.gate1").name = "gate1"
    found = prove_foldable(model, FEATURES)
    assert isinstance(found, Refusal)
    assert "its gate 'gate1' reads the latent" in found.reason


def test_a_sum_that_is_an_output_besides_the_prediction_is_refused() -> None:
    model = changed()
    model.graph.outputs.append(next(value for node in model.graph for value in node.outputs if value.name == "h1"))
    found = prove_foldable(model, FEATURES)
    assert isinstance(found, Refusal)
    assert "The prediction reads 2 streams, 'h2' (with 'blocks.0.ff' and 'blocks.0.attn') and 'h1'" in found.reason


def test_the_proof_leaves_the_graph_as_it_is() -> None:
    model = changed()
    before = ir.to_proto(model).SerializeToString()
    prove_foldable(model, FEATURES)
    assert ir.to_proto(model).SerializeToString() == before
