package flow

import "time"

// maxIntervals limits the throughput series: 3.6 hours of tenths of a second.
const maxIntervals = 1 << 17

// meter measures the throughput of a set of streams together. It is pure; times come in and never decrease.
type meter struct {
	interval time.Duration
	open     int           // streams
	first    time.Duration // when the first stream opened
	lastData time.Duration // when data last came
	last     time.Duration // the same, or when a stream opened after a time without any, if that is later
	bytes    uint64
	series   []uint64 // bytes per interval since first

	stall, stallStart time.Duration // the longest silence while a stream was open
}

func (m *meter) opened(now time.Duration) {
	if m.series == nil {
		m.first = now
		m.series = []uint64{}
	}
	if m.open == 0 {
		m.last = now
	}
	m.open++
}

// received books n bytes that came at now.
func (m *meter) received(now time.Duration, n int) {
	m.silent(now)
	m.last, m.lastData = now, now
	m.bytes += uint64(n)
	i := int((now - m.first) / m.interval)
	if i >= maxIntervals {
		return
	}
	for len(m.series) <= i {
		m.series = append(m.series, 0)
	}
	m.series[i] += uint64(n)
}

func (m *meter) closed(now time.Duration) {
	if m.open--; m.open == 0 {
		m.silent(now)
	}
}

// finish ends the measurement: what is still open counts as silent until now, and the series reaches it.
func (m *meter) finish(now time.Duration) {
	if m.open == 0 {
		return
	}
	m.silent(now)
	for i := int((now - m.first) / m.interval); len(m.series) < min(i, maxIntervals); {
		m.series = append(m.series, 0)
	}
}

func (m *meter) silent(now time.Duration) {
	if d := now - m.last; d > m.stall {
		m.stall, m.stallStart = d, m.last
	}
}
