import conftest, sys
sys.path.insert(0,"plugins/jno-lora-zoo/tests")
import numpy as np, jax, equinox as eqx, jax.numpy as jnp
from zoo_cases import ALL_METHODS, OPTIONS
import jno_lora_zoo
from jno.lora.testing import *
N=6
print(len(ALL_METHODS))
M=np.stack([np.roll(np.linspace(-1,1,N)**2,i) for i in range(N)])+np.eye(N)
def base(key):
    l=eqx.nn.Linear(N,N,use_bias=False,key=key)
    return eqx.tree_at(lambda l:l.weight,l,jnp.asarray(M,jnp.float32))
for m in ALL_METHODS:
    for rank in ((2,) if m!="C3A" else (1,2,6)):
        c=WrapperCase(getattr(jno_lora_zoo,m+"Linear"),base,lambda key:(jax.random.normal(key,(N,)),),rank=rank,options=OPTIONS.get(m,{}),symmetries=(cyclic_shift(0),))
        (r,)=run_checks(c,["symmetries"])
        print(m,rank,"keeps" if r.error is None else r.error.problem[-160:],flush=True)
