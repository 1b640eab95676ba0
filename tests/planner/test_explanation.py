from federated_dask.planner.explanation import Explanation, html_table, text_table
from federated_dask.planner.plan import EVENT_BYTES
from federated_dask.planner.sizes import FRAME_BYTES
from tests.planner.conftest import LAYOUTS
from tests.planner.federation import Federation


def own(x: object) -> object:
    return x


def explained() -> Explanation:
    laid = LAYOUTS["time"]()
    expression = laid.floats.data.map_blocks(own, dtype="f8").sum()
    return Explanation(laid.federation.plan(expression))


def test_the_text_says_where_how_much_and_why() -> None:
    text = repr(explained())
    for words in ("north", "south", "home", "bytes predicted", "cross in all", "Not at its data:"):
        assert words in text
    assert f"{__name__}.own is not in the operation table" in text
    assert "10 × own" in text


def test_html_says_the_same_and_is_escaped() -> None:
    html = explained()._repr_html_()
    assert f"{__name__}.own is not in the operation table" in html
    assert "&lt;b&gt;" in html_table(("<b>",), [("<i>",)])


def test_numbers_add_up() -> None:
    explanation = explained()
    assert explanation.download_bytes == sum(explanation.read_bytes.values()) == 30 * 24 * 8
    assert explanation.links["north", "home"] == 18 * 24 * 8 + 6 * FRAME_BYTES + EVENT_BYTES
    assert set(explanation.tasks) == {"north", "south", "home"}


def test_without_sites() -> None:
    import dask.array as da

    explanation = Explanation(Federation().plan(da.ones(3).sum()))
    assert explanation.links == {}
    assert "0 B cross" in repr(explanation)


def test_tables_align() -> None:
    lines = text_table(("where", "tasks"), [("north", "1,000"), ("a", "1")])
    assert lines[1].index("1,000") + 4 == lines[2].index("1", 8)
