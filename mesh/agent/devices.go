package agent

import (
	"fmt"
	"io/fs"
	"sync"
	"time"
)

// relook is the least time between two looks at the kernel's devices because
// of one that is not known.
const relook = 100 * time.Millisecond

// devices remembers which number belongs to which device, because asking the
// kernel for every datagram would cost more than the datagram. It looks anew
// when devices may have come or gone.
type devices struct {
	list func() (map[string]int, error)

	mu     sync.Mutex // guards the rest
	byName map[string]int
	byNum  map[int]string
	looked time.Time
}

func newDevices(list func() (map[string]int, error)) *devices { return &devices{list: list} }

// look reads all devices.
func (d *devices) look() {
	byName, err := d.list()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.looked = time.Now()
	if err != nil {
		return
	}
	d.byName, d.byNum = byName, make(map[int]string, len(byName))
	for name, number := range byName {
		d.byNum[number] = name
	}
}

// number gives a device's number; fs.ErrNotExist when there is no such device.
func (d *devices) number(name string) (int, error) {
	n, ok := find(d, func() (int, bool) { n, ok := d.byName[name]; return n, ok })
	if !ok {
		return 0, fmt.Errorf("device %s: %w", name, fs.ErrNotExist)
	}
	return n, nil
}

// device gives the name behind a number; fs.ErrNotExist when there is none.
func (d *devices) device(number int) (string, error) {
	name, ok := find(d, func() (string, bool) { s, ok := d.byNum[number]; return s, ok })
	if !ok {
		return "", fmt.Errorf("device %d: %w", number, fs.ErrNotExist)
	}
	return name, nil
}

// find looks something up, and once more after a new look if that is due.
func find[T any](d *devices, get func() (T, bool)) (T, bool) {
	d.mu.Lock()
	v, ok := get()
	due := !ok && time.Since(d.looked) >= relook
	d.mu.Unlock()
	if !due {
		return v, ok
	}
	d.look()
	d.mu.Lock()
	defer d.mu.Unlock()
	return get()
}
