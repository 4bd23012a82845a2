import dataclasses
import typing
from typing import Any

import pytest

from core.augment import Augmentation
from core.models import MODEL_CONFIGS, ViTConfig
from core.train_config import TrainConfig

CONFIGS = (TrainConfig, Augmentation, *MODEL_CONFIGS.values())
FIELDS = [(kind, field) for kind in CONFIGS for field in dataclasses.fields(kind)]


def allowed(field: dataclasses.Field[Any]) -> tuple[type, ...]:
    return typing.get_args(field.type) or (typing.cast(type, field.type),)


def names(fields: list[Any]) -> list[str]:
    return [f"{kind.__name__}.{field.name}" for kind, field in fields]


def refused(kind: type, field: dataclasses.Field[Any], value: object) -> str:
    config = TrainConfig(model=ViTConfig(), epochs=1.0) if kind is TrainConfig else kind()
    # The tests' run-time type checks would stop it on its way in; a user has none.
    object.__setattr__(config, field.name, value)
    with pytest.raises(ValueError) as error:
        config.__post_init__()
    return str(error.value)


SWITCHES = [one for one in FIELDS if bool in allowed(one[1]) and str not in allowed(one[1])]
NUMBERS = [one for one in FIELDS if float in allowed(one[1])]


@pytest.mark.parametrize(("kind", "field"), SWITCHES, ids=names(SWITCHES))
@pytest.mark.parametrize("value", ["no", 0])
def test_a_switch_takes_no_word_and_no_number(kind: type, field: dataclasses.Field[Any], value: object) -> None:
    assert refused(kind, field, value) == f"{field.name} must be true or false, got {value!r}"


@pytest.mark.parametrize(("kind", "field"), NUMBERS, ids=names(NUMBERS))
@pytest.mark.parametrize("value", ["0,002", True])
def test_a_number_is_no_word_and_no_switch(kind: type, field: dataclasses.Field[Any], value: object) -> None:
    assert refused(kind, field, value) == f"{field.name} must be a number, got {value!r}"


@pytest.mark.parametrize(("kind", "field"), SWITCHES + NUMBERS, ids=names(SWITCHES + NUMBERS))
def test_none_is_refused_where_it_has_no_meaning(kind: type, field: dataclasses.Field[Any]) -> None:
    if type(None) not in allowed(field):
        assert refused(kind, field, None).endswith("got None")
