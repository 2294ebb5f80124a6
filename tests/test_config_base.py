"""The machinery that every configuration stands on."""

import json
from dataclasses import dataclass
from typing import Literal

import pytest

from picollm_core.config_base import Config, require


@dataclass(frozen=True)
class Meal(Config):
    dish: Literal["soup", "bread"] = "soup"
    guests: int = 2
    weights: tuple[float, ...] = (1.0,)
    note: str | None = None

    def validate(self) -> None:
        require(self.guests >= 1, f"guests is {self.guests}; it must be at least 1")


def test_lists_and_whole_numbers_are_normalised_so_equal_configurations_share_a_fingerprint():
    one, other = Meal(weights=[1, 2]), Meal(weights=(1.0, 2.0))
    assert one == other
    assert one.fingerprint() == other.fingerprint() != Meal().fingerprint()


def test_a_round_trip_through_json_changes_nothing():
    meal = Meal("bread", 3, (0.5,), "late")
    assert Meal.from_dict(json.loads(json.dumps(meal.to_dict()))) == meal


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dish": "stone"}, "dish is 'stone'; choose one of 'soup', 'bread'"),
        ({"guests": "2"}, "guests is '2'; it must be of type int"),
        ({"guests": True}, "guests is True"),
        ({"guests": 0}, "guests is 0; it must be at least 1"),
        ({"wine": 1}, "Meal has no wine; known keys: dish, guests, note, weights"),
    ],
)
def test_a_wrong_value_or_key_is_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        Meal.from_dict(values)
