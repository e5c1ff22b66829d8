from ssl_models.objectives.adversarial import BiGAN
from ssl_models.objectives.generative import VAE, Autoencoder
from tests.ssl_models.cases.case import RESNET, Case

CASES = {
    # 1 if zero is predicted; noise is only predicted from memory. Sparsity starts near KL(.05‖.5) = 0.49 a unit.
    "autoencoder": Case(
        Autoencoder.Config(
            code_dim=16, masking=0.1, gaussian=0.1, salt_pepper=0.1, sparsity=0.01, activation=0.2, decoder_width=4
        ),
        RESNET,
        start=(0.9, 1.8),
        floor=0.9,
    ),
    # 1 / 2σ² = 2 if zero is predicted, as β starts at 0; at half of the run β is 1, and the KL costs
    "vae": Case(VAE.Config(latent_dim=16, decoder_width=4), RESNET, start=(1.8, 3.0), floor=1.7),
    # 2 ln 2 in each phase where nothing is told apart: 2.77. The sum can not fall, as one's loss is the other's gain;
    # the discriminator's alone goes to 0 on images that it knows.
    "bigan": Case(
        BiGAN.Config(latent_dim=8, generator_width=4, discriminator_width=4),
        RESNET,
        start=(2.5, 3.1),
        floor=0.1,
        alone="discriminator",
    ),
}
