"""The names that the course types, beside ours."""

from fastmlp.manual import checks, layers

Softmax_CrossEntropy = layers.SoftmaxCrossEntropy
FCL_Tests = checks.check_fully_connected
ReLU_Tests = checks.check_relu
SCE_Tests = checks.check_softmax_cross_entropy
