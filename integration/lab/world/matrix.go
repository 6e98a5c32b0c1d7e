package world

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"guywire/integration/lab/flow"
	"guywire/mesh/api"
)

// A Matrix is who talks to whom: rows and columns in the order of Hosts, each pair by UDP and ICMP.
type Matrix struct {
	Hosts []string     `json:"hosts"`
	RTTMs [][]*float64 `json:"rtt_ms"` // IPv4; null: no answer
	Pairs api.Count    `json:"pairs"`  // IPv4
	Pair6 api.Count    `json:"pairs_ipv6"`
}

// startEchoes starts what answers the pings, on all hosts.
func (w *World) startEchoes(ctx context.Context) error {
	return w.Each(w.Sites, func(s *Site) error {
		_, err := w.Nodes.Start(ctx, s.Host, "echo", []string{w.Exe, "flow", "echo", "--listen", fmt.Sprintf(":%d", echoPort)})
		return err
	})
}

// family6 marks the IPv6 targets of a row.
const family6 = "/6"

// Matrix pings between all hosts.
func (w *World) Matrix(ctx context.Context, count int) (Matrix, error) {
	reports := make([]flow.PingReport, len(w.Sites))
	err := w.Each(w.Sites, func(s *Site) error {
		argv := []string{w.Exe, "flow", "ping", "--from", s.Name, "--count", fmt.Sprint(count)}
		for _, to := range w.Sites {
			argv = append(argv, "--target", to.Name+"="+netip.AddrPortFrom(to.Host4, echoPort).String(),
				"--target", to.Name+family6+"="+netip.AddrPortFrom(to.Host6, echoPort).String())
		}
		out, err := w.Run(ctx, s.Host, "", argv...)
		if err != nil {
			return err
		}
		return json.Unmarshal(out, &reports[slices.Index(w.Sites, s)])
	})
	if err != nil {
		return Matrix{}, err
	}
	var hosts []string
	for _, s := range w.Sites {
		hosts = append(hosts, s.Name)
	}
	return matrixOf(hosts, reports), nil
}

// matrixOf puts the rows together; reports are in the order of hosts.
func matrixOf(hosts []string, reports []flow.PingReport) Matrix {
	m := Matrix{Hosts: hosts, RTTMs: make([][]*float64, len(hosts))}
	for i, r := range reports {
		m.RTTMs[i] = make([]*float64, len(hosts))
		for _, c := range r.Cells {
			name, v6 := strings.CutSuffix(c.Name, family6)
			count := &m.Pairs
			if v6 {
				count = &m.Pair6
			}
			count.Total++
			if !c.Reached {
				continue
			}
			count.Good++
			if k := slices.Index(hosts, name); k >= 0 && !v6 && c.UDP != nil {
				m.RTTMs[i][k] = new(float64(c.UDP.Min) / float64(time.Millisecond))
			}
		}
	}
	return m
}

// Missing says who does not talk; empty when all do.
func (m Matrix) Missing() string {
	want := len(m.Hosts) * len(m.Hosts)
	var s []string
	if m.Pairs.Good < want {
		var pairs []string
		for i, row := range m.RTTMs {
			for k, rtt := range row {
				if rtt == nil {
					pairs = append(pairs, m.Hosts[i]+"→"+m.Hosts[k])
				}
			}
		}
		s = append(s, fmt.Sprintf("IPv4 %d of %d, without %s", m.Pairs.Good, want, strings.Join(pairs, " ")))
	}
	if m.Pair6.Good < want {
		s = append(s, fmt.Sprintf("IPv6 %d of %d", m.Pair6.Good, want))
	}
	return strings.Join(s, "; ")
}
