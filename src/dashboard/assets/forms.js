// The terms of sale of products and the conditions of coupons: the fields that several forms share, and their words.

import { number, shopZone, t, won } from './i18n.js';

export const MAX_UNITS = 1_000_000_000;
export const MAX_WON = 1_000_000_000_000;
const MAX_LIMIT = 10_000;
const MAX_LISTED_PRODUCTS = 100;
const MAX_LISTED_CATEGORIES = 20;
const CATEGORIES = ['OUTER', 'TOP', 'BOTTOM', 'SHOES'];

export const zoneHint = () => t('zoneHint', { zone: shopZone() });

export const categoryField = (value = '') => ({
    name: 'category', label: t('form.category'), maxLength: 32, pattern: '[A-Z][A-Z0-9_]{0,31}', list: CATEGORIES, hint: t('form.category.hint'), value,
});

/// The window and the limit of a product with these terms.
export const termFields = ({ opensAt, closesAt, limitPerUser, limitGroup } = {}) => [
    { name: 'opensAt', label: t('form.sale.opensAt'), kind: 'time', required: false, half: true, hint: t('form.sale.opensAt.hint'), value: opensAt },
    { name: 'closesAt', label: t('form.sale.closesAt'), kind: 'time', required: false, half: true, hint: `${t('form.sale.closesAt.hint')} · ${zoneHint()}`, value: closesAt },
    { name: 'limitPerUser', label: t('form.limit'), kind: 'number', min: 1, max: MAX_LIMIT, required: false, half: true, hint: t('form.limit.hint'), value: limitPerUser },
    { name: 'limitGroup', label: t('form.group'), maxLength: 32, pattern: '[A-Z0-9_\\-]{1,32}', required: false, half: true, hint: t('form.group.hint'), value: limitGroup },
];

export const TERMS = ['opensAt', 'closesAt', 'limitPerUser', 'limitGroup'];

/// What is wrong with terms of sale: `{ field, text }`, or null.
export function checkTerms({ opensAt, closesAt, limitPerUser, limitGroup }) {
    if (opensAt !== null && closesAt !== null && opensAt >= closesAt) return { field: 'closesAt', text: t('form.wrong.window') };
    if (limitGroup !== null && limitPerUser === null) return { field: 'limitPerUser', text: t('form.wrong.group') };
    return null;
}

export const discountFields = () => [
    { name: 'discountType', label: t('form.discountType'), kind: 'choice', half: true, options: ['FIXED', 'PERCENTAGE'].map((kind) => [kind, t(`form.discountType.${kind}`)]) },
    { name: 'discountAmount', label: t('form.discountAmount'), kind: 'number', min: 1, max: MAX_WON, half: true },
];

/// The conditions of a coupon that are sums.
export const sumFields = () => [
    { name: 'minOrderPrice', label: t('form.minOrder'), kind: 'number', min: 1, max: MAX_WON, required: false, half: true, hint: t('form.minOrder.hint') },
    { name: 'maxDiscountPrice', label: t('form.maxDiscount'), kind: 'number', min: 1, max: MAX_WON, required: false, half: true, hint: t('form.maxDiscount.hint') },
];

export const categoriesField = () => ({ name: 'categories', label: t('form.categories'), maxLength: 700, required: false, half: true, hint: t('form.categories.hint'), placeholder: 'SHOES, TOP' });

export const productsField = (more) => ({ name: 'productIds', label: t('form.productIds'), maxLength: 2_000, required: false, hint: t('form.productIds.hint'), placeholder: '12, 14-18', ...more });

/// The numbers of a text like `12, 14-18`, each once; null if it has another form, or too many.
export function readNumbers(text) {
    const numbers = new Set();
    for (const part of text.split(/[\s,]+/).filter(Boolean)) {
        const match = /^([1-9]\d{0,15})(?:-([1-9]\d{0,15}))?$/.exec(part);
        if (!match) return null;
        const [first, last] = [Number(match[1]), Number(match[2] ?? match[1])];
        if (last < first || last - first >= MAX_LISTED_PRODUCTS || last > Number.MAX_SAFE_INTEGER) return null;
        for (let id = first; id <= last; id += 1) numbers.add(id);
    }
    return numbers.size > MAX_LISTED_PRODUCTS ? null : [...numbers];
}

function readCategories(text) {
    const words = [...new Set(text.split(/[\s,]+/).filter(Boolean))];
    return words.length > MAX_LISTED_CATEGORIES || words.some((word) => !/^[A-Z][A-Z0-9_]{0,31}$/.test(word)) ? null : words;
}

/// What is wrong with a coupon: `{ field, text }`, or null. `now`: local ISO.
export function checkCoupon(values, now) {
    const { discountType, discountAmount, maxDiscountPrice, opensAt, closesAt, expiredAt, productIds, categories } = values;
    if (discountType === 'PERCENTAGE' && discountAmount > 100) return { field: 'discountAmount', text: t('form.wrong.percentage') };
    if (discountType === 'FIXED' && maxDiscountPrice !== null) return { field: 'maxDiscountPrice', text: t('form.wrong.cap') };
    if (typeof productIds === 'string' && !readNumbers(productIds)?.length) return { field: 'productIds', text: t('form.wrong.productIds') };
    if (typeof categories === 'string' && !readCategories(categories)?.length) return { field: 'categories', text: t('form.wrong.categories') };
    if (expiredAt <= now) return { field: 'expiredAt', text: t('form.wrong.expired') };
    if (closesAt !== null && closesAt > expiredAt) return { field: 'closesAt', text: t('form.wrong.closes') };
    if ((opensAt ?? now) >= (closesAt ?? expiredAt)) return { field: closesAt === null ? 'expiredAt' : 'closesAt', text: t('form.wrong.window') };
    return null;
}

/// The body of a request that creates a coupon, from the values of its form.
export function couponBody({ productIds, categories, ...rest }) {
    const body = Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== null));
    if (productIds !== null) body.productIds = typeof productIds === 'string' ? readNumbers(productIds) : productIds;
    if (categories !== null) body.categories = readCategories(categories);
    return body;
}

export const discountText = ({ discountType, discountAmount }) =>
    discountType === 'FIXED' ? t('discount.FIXED', { amount: won(discountAmount) }) : t('discount.PERCENTAGE', { n: number(discountAmount) });

/// The conditions of a coupon in words; empty without any.
export function conditionsText({ minOrderPrice, maxDiscountPrice, productCount, categories }) {
    return [
        minOrderPrice === null ? null : t('conditions.min', { amount: won(minOrderPrice) }),
        maxDiscountPrice === null ? null : t('conditions.max', { amount: won(maxDiscountPrice) }),
        productCount === 0 ? null : t('conditions.products', { n: productCount }),
        categories.length === 0 ? null : categories.join(', '),
    ].filter(Boolean).join(' · ');
}
