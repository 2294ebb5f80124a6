"""The feature browser's controls: what they offer and when they report."""

from picollm_core.interpret import feature_controls as controls


def test_what_starts_a_computation_reports_only_when_let_go():
    for control in (controls.amount_slider(), controls.search_box(), controls.number_box()):
        assert not control.continuous_update


def test_the_slider_goes_as_far_down_as_up_and_stands_at_nothing():
    slider = controls.amount_slider()
    assert slider.min == -slider.max < 0 == slider.value


def test_the_list_can_be_sorted_by_every_metric_in_words():
    assert [value for _, value in controls.sort_choice().options] == list(controls.SORTED_BY)


def test_lists_may_be_empty():
    assert controls.model_choice([], None).value is None
    assert controls.dictionary_choice().value is None
    assert controls.feature_list().value is None
