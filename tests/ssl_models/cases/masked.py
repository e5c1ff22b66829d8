from ssl_models.objectives.masked import MAE
from tests.ssl_models.cases.case import VIT, Case

CASES = {
    # 1 if zero is predicted; noise is only predicted from memory
    "mae": Case(MAE.Config(decoder_dim=16, decoder_depth=1, decoder_heads=2), VIT, start=(0.9, 1.6), floor=0.7),
}
