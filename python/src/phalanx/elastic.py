class ElasticBuffer: pass
class EPHandle: pass
