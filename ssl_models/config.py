"""The one base of every configuration: immutable, and deaf to no typing error."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen group of settings. Unknown keys are refused; each class stands beside what it configures."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
