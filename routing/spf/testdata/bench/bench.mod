// The peer of the benchmarks, kept out of the product's module graph.
module guywire

go 1.26.0

require gonum.org/v1/gonum v0.17.0
