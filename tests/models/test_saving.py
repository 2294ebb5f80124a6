"""What a folder can hold: written whole, read back to the bit, refused by name when it is something else."""

import pytest
import torch
from torch import nn

from picollm_core.models.saving import CONFIG_FILE, WEIGHTS_FILE, SavedModule, load_weights


class Scale(SavedModule):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(float(width)))

    def config_values(self) -> dict:
        return {"width": len(self.weight)}

    @classmethod
    def from_config_values(cls, values: dict) -> "Scale":
        return cls(values["width"])


def test_a_module_comes_back_to_the_bit_in_evaluation_mode(tmp_path):
    module = Scale(3)
    with torch.no_grad():
        module.weight.mul_(0.1)
    module.save_pretrained(tmp_path)
    again = Scale.from_pretrained(tmp_path)
    assert torch.equal(again.weight, module.weight)
    assert not again.training
    assert not (tmp_path / ".saving").exists()


def test_half_precision_on_disk_is_read_into_the_modules_own_type(tmp_path):
    Scale(4).half().save_pretrained(tmp_path)
    again = Scale.from_pretrained(tmp_path)
    assert again.weight.dtype == torch.float32
    assert again.weight.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("missing", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_folder_without_one_of_its_files_is_refused_by_its_name(tmp_path, missing):
    Scale(2).save_pretrained(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(ValueError, match=f"is not a saved model: it has no {missing}"):
        Scale.from_pretrained(tmp_path)


def test_a_configuration_that_lacks_a_value_and_weights_that_do_not_fit_are_refused(tmp_path):
    Scale(2).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{WEIGHTS_FILE} cannot be loaded"):
        load_weights(Scale(3), tmp_path / WEIGHTS_FILE)
    (tmp_path / CONFIG_FILE).write_text("{}")
    with pytest.raises(ValueError, match=f"{CONFIG_FILE} is not a model configuration"):
        Scale.from_pretrained(tmp_path)
