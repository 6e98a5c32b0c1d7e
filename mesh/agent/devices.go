package agent

import "sync"

// devices remembers which number belongs to which device, because asking the
// kernel for every datagram would cost more than the datagram. It is emptied
// whenever devices may have come or gone.
type devices struct {
	index func(device string) (int, error)
	name  func(index int) (string, error)

	mu     sync.Mutex // guards the rest
	byName map[string]int
	byNum  map[int]string
}

func newDevices(o Outside) *devices {
	d := &devices{index: o.Index, name: o.Device}
	d.forget()
	return d
}

func (d *devices) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.byName, d.byNum = map[string]int{}, map[int]string{}
}

// number gives a device's number, or the kernel's error.
func (d *devices) number(name string) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n, ok := d.byName[name]; ok {
		return n, nil
	}
	n, err := d.index(name)
	if err == nil {
		d.byName[name], d.byNum[n] = n, name
	}
	return n, err
}

// device gives the name behind a number, or the kernel's error.
func (d *devices) device(number int) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if name, ok := d.byNum[number]; ok {
		return name, nil
	}
	name, err := d.name(number)
	if err == nil {
		d.byName[name], d.byNum[number] = number, name
	}
	return name, err
}
